# SPDX-License-Identifier: Apache-2.0
"""Clocks that step: the one on the wall matters to no decision, and a jump of the other costs those it makes late.

A process that stood still (a stopped container, a suspended machine) sees its monotonic clock jump forward.
"""

from __future__ import annotations

import ast
import asyncio
import re
import signal
import time
from pathlib import Path

import pytest

from inferlane.errors import Reason
from proxy.arrival import Arrival
from qos.timeline import Timeline
from tests.fakes.crowd import crowd
from tests.fakes.fake_time import FakeTimeLoop
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import CLASSES, gateway_process, live_gateway, oip_pool, write_config
from tests.fakes.scripted_oip import GOOD, ScriptedOip, after, never, saying
from tests.fakes.timed_pipeline import TimedPipeline
from tests.fakes.walk import RecordingResponder, arrival

ROOT = Path(__file__).parent.parent.parent
PATH = "/v2/models/m/infer"
YEARS = 10 * 365 * 86_400.0
HOUR = 3600.0
BRIEF = CLASSES + "  - {name: brief, dscp: CS1, deadline: 1s}\n"

# What a wall clock tells is for people to read, or for certificates; nothing here decides about requests.
WALL_CLOCK = {
    "proxy/certificate.py": "until when the development certificate is valid",
    "proxy/keys.py": "how old a key is that an earlier process left in a file",
    "proxy/telemetry/logs.py": "the time in a log line",
    "qos/tc/change/making.py": "the time in a ledger of changes to the kernel",
    "qos/tc/change/watcher.py": "the time in a message",
    "qos/tc/keep/vigil.py": "the time in a message",
}
MENTIONS_IT = re.compile(r"import .*\b(time|datetime|date)\b|from (time|datetime) import").search
READS_IT = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "utcnow", "today"}


def wall_clocks(file: Path) -> set[str]:
    """Each call that asks what time it is, as it is written."""
    found: set[str] = set()
    text = file.read_text()
    if not MENTIONS_IT(text):
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS_IT:
            owner = ast.unparse(node.func.value)
            if owner in ("time", "datetime", "date", "datetime.datetime", "datetime.date"):
                found.add(ast.unparse(node.func))
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {f"from time import {each.name}" for each in node.names if each.name in READS_IT}
    return found


def test_nothing_that_decides_about_requests_reads_the_clock_on_the_wall():
    folders = [ROOT / each for each in ("qos", "backends", "proxy", "sdk/inferlane")]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    assert {str(file.relative_to(ROOT)) for file in files if wall_clocks(file)} == set(WALL_CLOCK)


def test_a_wall_clock_would_be_found(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import time\nfrom time import time_ns\nnow = time.time()\nthen = time.monotonic()\n")
    assert wall_clocks(file) == {"time.time", "from time import time_ns"}


@pytest.fixture
async def server():
    made = ScriptedOip(after(0.001))
    await made.start()
    yield made
    await made.close()


@pytest.mark.parametrize("step_s", [YEARS, -YEARS])
async def test_a_step_of_the_clock_on_the_wall_changes_nothing(tmp_path, server, monkeypatch, step_s):
    """While some wait, some are served, and some come later."""
    real = time.time  # noqa: TID251  it is the one to be stepped
    conf = write_config(tmp_path, oip_pool(server.port, slots=2), classes=BRIEF)
    async with live_gateway(conf) as gateway, crowd(gateway.address, 30) as members:
        server.answer = after(0.05)
        asked = [each.ask() for each in members]
        await server.has(2)
        monkeypatch.setattr(time, "time", lambda: real() + step_s)
        monkeypatch.setattr(time, "time_ns", lambda: int((real() + step_s) * 1e9))
        assert {each.header.status for each in await asyncio.gather(*asked)} == {200}
        async with h1_client(gateway.address, tmp_path) as client:
            assert (await client.ask(PATH)).status == 200
            server.answer = never
            assert (await client.ask(PATH, inferlane_timeout="200ms")).status == 504
        await gateway.nothing_in_flight()


async def test_a_gateway_that_stood_still_tells_those_who_are_late_and_goes_on(tmp_path, server):
    conf = write_config(tmp_path, oip_pool(server.port, slots=1), classes=BRIEF)
    async with gateway_process(conf) as process, crowd(await process.address(), 20) as members:
        observed = await process.observed()
        server.answer = never
        late = [each.ask(cls="brief") for each in members[:10]]
        patient = [each.ask(cls="batch") for each in members[10:]]
        await observed.reaches("inferlane_gate_waiting", 19)
        process.signal(signal.SIGSTOP)
        server.answer = saying(200, GOOD % 1)
        await asyncio.sleep(1.5)  # longer than the deadline of one class, and shorter than the other's
        process.signal(signal.SIGCONT)
        outcomes = [each.header for each in await asyncio.gather(*late)]
        assert {each.status for each in outcomes} == {504}
        assert {Reason.from_code(each.reason) for each in outcomes} <= {Reason.DEADLINE, Reason.TOO_LATE}
        assert {each.header.status for each in await asyncio.gather(*patient)} == {200}
        assert (await members[0].ask(cls="brief")).header.status == 200
        await observed.nothing_in_flight()
        assert not any('"level":"error"' in line for line in process.lines)


class Asking:
    """Requests on a clock that a test turns."""

    def __init__(self, *, slots: int = 1) -> None:
        self.loop = FakeTimeLoop()
        asyncio.set_event_loop(self.loop)
        self.made = TimedPipeline(self.loop, slots=slots)

    def ask(self, cls: str = "patient") -> tuple[asyncio.Task[None], RecordingResponder]:
        answered = RecordingResponder()
        asked: Arrival = arrival(asked_class=cls, timeline=Timeline(self.loop.now))
        task = self.loop.create_task(self.made.pipeline(asked, answered))
        self.loop.settle()
        return task, answered


@pytest.fixture
def asking():
    made = Asking()
    yield made
    made.loop.finish()
    asyncio.set_event_loop(None)


def reasons(asked: list[tuple[asyncio.Task[None], RecordingResponder]]) -> list[Reason]:
    assert all(task.done() for task, _ in asked)
    return [refusal.reason for _, answered in asked for refusal in answered.refusals]


def test_a_jump_forward_refuses_whom_it_makes_late_and_keeps_no_place(asking):
    asked = [asking.ask() for _ in range(5)]
    assert (asking.made.endpoint.in_flight, len(asking.made.dispatched)) == (1, 1)
    asking.loop.advance(HOUR)
    assert reasons(asked) == [Reason.DEADLINE] * 5
    assert asking.made.endpoint.in_flight == 0
    asking.made.answers.set()
    task, answered = asking.ask()
    asking.loop.settle()
    assert task.done() and [each.status for each in answered.replies] == [200]


def test_a_jump_backward_keeps_nobody_out(asking):
    """No monotonic clock does that; were one to, what was learnt before must not shut the door until it catches up."""
    asking.made.answers.set()
    for _ in range(30):
        asking.ask()
        asking.loop.advance(0.01)
    asking.loop.now -= HOUR
    asked = [asking.ask() for _ in range(5)]
    asking.loop.settle()
    assert [task.done() for task, _ in asked] == [True] * 5
    assert [each.status for _, answered in asked for each in answered.replies] == [200] * 5
    assert asking.made.endpoint.in_flight == 0


def test_many_small_jumps_leave_every_place_free(asking):
    """Forward by more and less than a deadline, with requests that wait, run and are answered at the time."""
    asked = []
    for turn in range(60):
        asked += [asking.ask() for _ in range(3)]
        (asking.made.answers.set if turn % 3 else asking.made.answers.clear)()
        asking.loop.advance((turn % 7) * 5.0)
    asking.made.answers.set()
    asking.loop.advance(HOUR)
    assert all(task.done() for task, _ in asked)
    assert all(len(answered.replies) + len(answered.refusals) == 1 for _, answered in asked)
    assert set(reasons(asked)) <= {Reason.DEADLINE, Reason.TOO_LATE}
    assert asking.made.endpoint.in_flight == 0
