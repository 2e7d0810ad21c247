# SPDX-License-Identifier: Apache-2.0
"""Structured log lines on stderr, one event a line: JSON for machines, key=value for people.

Events carry strings that clients chose. Whatever would break the line or reach a terminal as a command (controls,
bidirectional overrides, lone surrogates) leaves escaped, so no event has to be cleaned where it is logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO, Literal, cast

import msgspec
import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import Processor

from proxy.telemetry.log_output import LogOutput

__all__ = ["Direct", "Line", "LogOutput", "configure", "direct", "timestamp", "told"]

_encode = msgspec.json.Encoder(enc_hook=ascii).encode
# Text that is ours and has lines of its own: tracebacks.
_MULTILINE = ("exception", "stack")
_COLORS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_PLAIN = "\x1b[0m"
_LEVELS = {"exception": "error", "warn": "warning", "msg": "info"}


def configure(
    layout: Literal["json", "console"] = "json",
    level: str = "info",
    stream: BinaryIO | None = None,
    *,
    worker: str = "",
) -> LogOutput:
    """Set up logging for the process: structlog's, and through it what libraries log by the standard module.

    worker: which of several processes this is, for each of its lines to say.
    """
    output = LogOutput(stream or sys.stderr.buffer)
    colors = layout == "console" and output.stream.isatty()
    render = _JsonLine(worker) if layout == "json" else _ConsoleLine(worker, colors=colors)
    processors: list[Processor] = [structlog.processors.format_exc_info, render]
    global _direct  # structlog's own configuration is the process's, too
    _direct = Direct(processors, output)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,  # a later `configure` (reload, tests) must reach loggers already in use
    )
    logging.basicConfig(handlers=[_FromLibraries()], level=max(logging.WARNING, _number(level)), force=True)
    # aioquic warns of each fault of a client: a line for every forged packet of a flood.
    logging.getLogger("quic").setLevel(logging.ERROR)
    return output


class Line(msgspec.Struct):
    """A line that is written so often that its fields are prepared; subclasses have them in the line's order."""

    timestamp: str
    level: str
    event: str


class Direct:
    """The short way of such lines: the same bytes as through structlog, for a third of the cost, and some together."""

    def __init__(self, processors: list[Processor], output: LogOutput) -> None:
        self._processors = processors
        self._render = processors[-1]
        assert isinstance(self._render, (_JsonLine, _ConsoleLine))
        self._line = self._render.line
        self._output = output

    def __repr__(self) -> str:
        return f"<Direct to {self._output!r}>"

    def write(self, line: Line) -> bool:
        """False: somebody has put other processors in, as tests do; write it through structlog."""
        if self._processors[-1] is not self._render:
            return False
        self._output.together(self._line(line))
        return True

    @property
    def in_use(self) -> bool:
        """Whether logging is still as it was configured."""
        return structlog.get_config()["processors"] is self._processors


_direct: Direct | None = None


def direct() -> Direct | None:
    """The short way, where logging was configured here."""
    return _direct if _direct is not None and _direct.in_use else None


def told(line: Line) -> dict[str, Any]:
    """A line's names and values, as structlog takes them beside the event."""
    pairs = cast(dict[str, Any], msgspec.to_builtins(line))
    return {name: value for name, value in pairs.items() if name not in Line.__struct_fields__}


def timestamp() -> str:
    """Now, as lines say it."""
    second, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{microseconds:06}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds")[:19]


class _FromLibraries(logging.Handler):
    """asyncio, aiohttp and aioquic log through the standard library; their lines get our shape."""

    def emit(self, record: logging.LogRecord) -> None:
        log, message = structlog.get_logger(), record.getMessage()
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            # aiohttp traces every request line that is not HTTP; it has answered it, and nothing is wrong here.
            log.debug("bad_http_request", message=message, detail=str(record.exc_info[1]))
        else:
            log.log(record.levelno, "library_message", logger=record.name, message=message, exc_info=record.exc_info)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _stamped(method: str, event: Mapping[str, Any]) -> dict[str, Any]:
    stamped = {"timestamp": timestamp(), "level": _LEVELS.get(method, method), "event": event["event"]}
    stamped.update(event)
    return stamped


class _JsonLine:
    """An object, to whose end the worker's name is added."""

    def __init__(self, worker: str) -> None:
        self._end = b',"worker":%b}' % _encode(worker) if worker else b""

    def __call__(self, _: object, method: str, event: Mapping[str, Any]) -> bytes:
        return self.line(_stamped(method, event))

    def line(self, event: dict[str, Any] | Line) -> bytes:
        """What is written of an event, or of a prepared line."""
        line = _json(event)
        return line[:-1] + self._end if self._end else line


def _json(stamped: dict[str, Any] | Line) -> bytes:
    try:
        line = _encode(stamped)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot carry
        pairs = msgspec.to_builtins(stamped) if isinstance(stamped, Line) else stamped
        line = json.dumps(pairs, default=ascii, separators=(",", ":")).encode()
    if line.isascii() and b"\x7f" not in line:  # the encoder has escaped the other controls
        return line
    # Outside its strings a JSON text has no such character, so an escape can stand wherever one is found.
    return "".join(each if each.isprintable() else _json_escape(each) for each in line.decode()).encode()


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


class _ConsoleLine:
    """key=value pairs without those that have no value; text with spaces or odd characters is quoted."""

    def __init__(self, worker: str, *, colors: bool) -> None:
        self._worker = [f"worker={_value(worker)}"] if worker else []
        self._colors = _COLORS if colors else {}

    def __call__(self, _: object, method: str, event: Mapping[str, Any]) -> bytes:
        return self.line(_stamped(method, event))

    def line(self, event: dict[str, Any] | Line) -> bytes:
        """What is shown of an event, whose pairs are taken out, or of a prepared line."""
        stamped = msgspec.to_builtins(event) if isinstance(event, Line) else event
        timestamp, level, name = stamped.pop("timestamp"), stamped.pop("level"), stamped.pop("event")
        color = self._colors.get(level)
        shown = f"{color}{level:8}{_PLAIN}" if color else f"{level:8}"
        below = [_printable(stamped.pop(key)) for key in _MULTILINE if stamped.get(key)]
        pairs = [f"{key}={_value(value)}" for key, value in stamped.items() if value is not None]
        return "\n".join([" ".join([timestamp, shown, _value(name), *pairs, *self._worker]), *below]).encode()


def _value(value: object) -> str:
    if not isinstance(value, str):
        return ascii(value)
    bare = value.isprintable() and not any(each in value for each in " ='\"")
    return value if bare else ascii(value)


def _printable(text: str) -> str:
    return "\n".join(line if line.isprintable() else ascii(line) for line in text.split("\n"))
