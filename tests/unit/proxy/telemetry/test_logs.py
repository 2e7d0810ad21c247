# SPDX-License-Identifier: Apache-2.0
"""Log lines: one event a line, whatever clients put into it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import msgspec
import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.logs import Line, configure, direct, told

# Ends a line, moves a terminal's cursor, hides or reorders text; and half a character.
HOSTILE = "a\nb\r\x1b[31mred\x9b0m\x7f\u202egnp.exe\u2028 \ud800 \U000e0041"


@pytest.fixture(autouse=True)
def forget_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    structlog.reset_defaults()
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


def log_line(layout: str, **event: object) -> bytes:
    stream = io.BytesIO()
    configure(layout, "info", stream)
    structlog.get_logger().info("something_happened", **event)
    return stream.getvalue()


def test_json_says_when_how_bad_and_what_first(stream):
    line = log_line("json", listener="main", count=3, address=("127.0.0.1", 4433), nothing=None)
    assert re.match(rb'\{"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z","level":"info","event":"somet', line)
    told = json.loads(line)
    assert told["listener"] == "main"
    assert told["count"] == 3
    assert told["address"] == ["127.0.0.1", 4433]
    assert told["nothing"] is None


class Happened(Line):
    """A prepared line."""

    count: int


@pytest.mark.parametrize("layout", ["json", "console"])
def test_of_several_processes_each_line_says_which_wrote_it(stream, layout):
    configure(layout, "info", stream, worker="worker 0.1")
    structlog.get_logger().info("something_happened", count=1)
    prepared = direct()
    assert prepared is not None
    prepared.write(Happened(timestamp="now", level="info", event="something_happened", count=1))
    logging.getLogger("library").error("something")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.endswith(b',"worker":"worker 0.1"}' if layout == "json" else b" worker='worker 0.1'"), line
    if layout == "json":
        assert [json.loads(line)["worker"] for line in lines] == ["worker 0.1"] * 3


def test_console_leaves_out_what_has_no_value_and_quotes_what_has_spaces():
    line = log_line("console", listener="main", detail="no place left", nothing=None, seconds=0.5).decode()
    assert line.endswith("Z info     something_happened listener=main detail='no place left' seconds=0.5\n")


@pytest.mark.parametrize("layout", ["json", "console"])
def test_a_client_s_text_can_neither_end_the_line_nor_reach_the_terminal(layout):
    line = log_line(layout, model=HOSTILE).decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_json_keeps_a_client_s_text_whole():
    assert json.loads(log_line("json", model=HOSTILE))["model"] == HOSTILE


def test_a_client_s_text_cannot_forge_a_pair_in_the_console():
    line = log_line("console", model="digits status=200").decode()
    assert "model='digits status=200'" in line


@given(st.text(st.characters(exclude_categories=[])), st.sampled_from(["json", "console"]))
def test_any_text_is_one_printable_line(text, layout):
    line = log_line(layout, text=text).decode()
    assert line[:-1].isprintable()
    if layout == "json":
        assert json.loads(line)["text"] == text


def test_text_in_other_scripts_stays_readable():
    assert "größe 模型".encode() in log_line("json", model="größe 模型")


@pytest.mark.parametrize(("layout", "traced"), [("json", rb"\n  File "), ("console", b"\n  File ")])
def test_an_exception_brings_its_trace(stream, layout, traced):
    configure(layout, "info", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("walk_failed")
    assert traced in stream.getvalue()
    assert b"ValueError: broken" in stream.getvalue()
    assert b"error" in stream.getvalue().split(b"walk_failed")[0]


def test_a_trace_with_a_client_s_text_in_it_does_not_reach_the_terminal(stream):
    configure("console", "info", stream)
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        structlog.get_logger().exception("walk_failed")
    assert b"\x1b" not in stream.getvalue()


def test_what_is_below_the_level_is_not_written(stream):
    configure("json", "warning", stream)
    structlog.get_logger().info("detail")
    assert stream.getvalue() == b""
    assert not structlog.get_logger().is_enabled_for(logging.INFO)


def test_a_new_configuration_reaches_loggers_that_are_in_use(stream):
    log = structlog.get_logger("inferlane.test")
    configure("json", "error", io.BytesIO())
    log.info("before")
    configure("json", "info", stream)
    log.info("after")
    assert json.loads(stream.getvalue())["event"] == "after"


def test_what_cannot_be_encoded_is_described(stream):
    class Thing:
        def __repr__(self) -> str:
            return "<thing \x1b>"

    configure("json", "info", stream)
    structlog.get_logger().info("seen", thing=Thing())
    assert json.loads(stream.getvalue())["thing"] == "<thing \x1b>"


def test_libraries_log_in_our_shape(stream):
    configure("json", "info", stream)
    logging.getLogger("asyncio").error("Task %s was destroyed", "x\x1b[31m")
    told = json.loads(stream.getvalue())
    assert (told["level"], told["event"], told["logger"]) == ("error", "library_message", "asyncio")
    assert told["message"] == "Task x\x1b[31m was destroyed"


@pytest.mark.parametrize(("level", "lines"), [("info", 0), ("debug", 1)])
def test_a_bad_request_line_is_no_error_of_ours(stream, level, lines):
    configure("json", level, stream)
    try:
        raise BadHttpMessage("not HTTP")
    except BadHttpMessage as error:
        logging.getLogger("aiohttp.server").exception("Error handling request from %s", "192.0.2.1", exc_info=error)
    assert stream.getvalue().count(b"\n") == lines
    assert b"Traceback" not in stream.getvalue()


class BrokenPipe(io.BytesIO):
    def write(self, _: bytes) -> int:
        raise BrokenPipeError


def test_a_log_that_cannot_be_written_fails_nobody_and_is_counted():
    output = configure("json", "info", BrokenPipe())
    structlog.get_logger().info("unheard")
    assert output.lost == 1
    assert "1 lines lost" in repr(output)


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colours_and_nothing_else_does(stream):
    for each in (terminal := Terminal(), stream):
        configure("console", "info", each)
        structlog.get_logger().warning("look")
    assert b"\x1b[33mwarning \x1b[0m look" in terminal.getvalue()
    assert b"\x1b" not in stream.getvalue()


class Prepared(Line):
    """As lines of requests are."""

    model: str
    class_name: str = msgspec.field(name="class")
    nothing: None


@pytest.mark.parametrize("layout", ["json", "console"])
@pytest.mark.parametrize("model", ["digits", "größe 模型", HOSTILE])
def test_a_prepared_line_is_the_line_that_structlog_writes(layout: str, model: str) -> None:
    shortly, usually = io.BytesIO(), io.BytesIO()
    line = Prepared("2026-01-01T00:00:00.000000Z", "info", "something_happened", model, "batch", None)
    configure(layout, "info", shortly)  # type: ignore[arg-type]  # one of both
    short_way = direct()
    assert short_way is not None
    assert short_way.write(line)
    configure(layout, "info", usually)  # type: ignore[arg-type]  # one of both
    structlog.get_logger().info(line.event, **told(line))
    stamp = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]+Z")
    assert stamp.sub(b"", shortly.getvalue()) == stamp.sub(b"", usually.getvalue())


def test_the_short_way_is_shut_where_others_configure_logging(stream):
    line = Prepared("2026-01-01T00:00:00.000000Z", "info", "something_happened", "digits", "batch", None)
    configure("json", "info", stream)
    short_way = direct()
    assert short_way is not None
    with structlog.testing.capture_logs() as captured:
        assert not short_way.write(line)
        structlog.get_logger().info(line.event, **told(line))
    assert captured == [
        {"event": "something_happened", "log_level": "info", "model": "digits", "class": "batch", "nothing": None}
    ]
    structlog.reset_defaults()
    assert direct() is None
    assert not stream.getvalue()


def test_a_client_s_fault_in_quic_is_no_line() -> None:
    stream = io.BytesIO()
    output = configure("json", "info", stream)
    logging.getLogger("quic").warning("[ab] Error: 10, reason: forged")
    logging.getLogger("other").warning("seen")
    output.flush()
    assert [b"seen" in line for line in stream.getvalue().splitlines()] == [True]
