# SPDX-License-Identifier: Apache-2.0
"""The gateway's side of the helper: what it says reaches the log and the metrics, and its death stops nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from proxy import keeper
from proxy.keeper import SILENT_S, Keeper, spawn
from proxy.privileges import Capability
from proxy.telemetry.link_metrics import LinksSeen
from qos.tc.keep.messages import Ended, LinkReading, LogLine, Readings, Refusal, Report, Standing, encode
from tests.fakes.link_policies import policy_of

POLICY = policy_of()
LINK = LinkReading(interface="eth0", netns=None, in_force=True)
PATIENCE_S = 30.0


class FakeProcess:
    """A helper that ends when it is told to, or with its socket."""

    def __init__(self, exit_code: int = 0, *, deaf: bool = False) -> None:
        self.exit_code = exit_code
        self.killed = False
        self.deaf = deaf

    def wait(self, timeout: float | None = None) -> int:
        if self.deaf and not self.killed:
            raise subprocess.TimeoutExpired("helper", timeout or 0)
        return self.exit_code

    def kill(self) -> None:
        self.killed = True
        self.exit_code = -9


class Helped:
    """A keeper whose helper is this test."""

    def __init__(self, process: FakeProcess) -> None:
        self.now = 100.0
        self.seen: list[LinksSeen] = []
        self.process = process
        ours, its = socket.socketpair()
        self._its = its
        self.keeper = Keeper(POLICY, process, ours, clock=lambda: self.now)  # type: ignore[arg-type]

    async def start(self) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(sock=self._its)
        await self.keeper.start(self.seen.append)

    def says(self, *reports: Report) -> None:
        for each in reports:
            self.writer.write(encode(each))

    async def asked(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readline()

    async def until(self, happened: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                await asyncio.sleep(0.001)

    async def dies(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@pytest.fixture
async def helped() -> AsyncIterator[Helped]:
    helped = Helped(FakeProcess())
    await helped.start()
    yield helped
    closing = asyncio.create_task(helped.keeper.close())
    helped.says(Ended(released=False))
    await helped.dies()
    await closing


def events(logs: list[Any]) -> list[str]:
    return [each["event"] for each in logs]


async def test_it_asks_for_counters_at_once_and_shows_the_last(helped):
    assert await helped.asked() == b'{"do":"statistics"}\n'
    assert helped.seen[-1].attended
    helped.says(Readings(links=(LINK,), repairs=2))
    await helped.until(lambda: helped.seen[-1].repairs == 2)
    assert list(helped.seen[-1].links) == [LINK]


async def test_its_lines_come_into_our_log_with_their_level(helped):
    with capture_logs() as logs:
        helped.says(
            LogLine(level="warning", name="traffic_control_repaired", interface="eth0", detail="somebody"),
            LogLine(level="info", name="interface_back", interface="eth0", netns="blue"),
            Refusal(detail="not understood"),
        )
        await helped.until(lambda: len(logs) == 3)
    assert logs[0] == {
        "event": "traffic_control_repaired",
        "log_level": "warning",
        "interface": "eth0",
        "detail": "somebody",
    }
    assert (logs[1]["netns"], logs[1]["log_level"]) == ("blue", "info")
    assert logs[2]["log_level"] == "error"


async def test_a_config_that_differs_from_what_was_confirmed_waits_and_is_told_so(helped):
    with capture_logs() as logs:
        helped.says(Standing(id="c0", digest="another", duty="keep"))
        await helped.until(lambda: logs)
        helped.says(Standing(id="c0", digest="another", duty="keep", repairs=1), Readings(links=(), repairs=1))
        await helped.until(lambda: helped.seen[-1].repairs == 1)
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("traffic_control_differs", "warning")
    said = "the config's traffic control differs from what was confirmed (c0); it waits for inferlane qos apply"
    assert line["detail"] == said


async def test_what_is_confirmed_and_what_never_was_is_told(helped):
    with capture_logs() as logs:
        helped.says(
            Standing(id=None, digest=None, duty="idle"),
            Standing(id="c1", digest=POLICY.digest, duty="keep", links=(LINK,)),
        )
        await helped.until(lambda: len(logs) == 2)
    assert events(logs) == ["traffic_control_not_confirmed", "traffic_control_kept"]
    assert logs[1]["in_force"] == ["eth0"]


async def test_a_reload_compares_again_and_has_the_helper_read_the_books(helped):
    helped.says(Standing(id="c1", digest=POLICY.digest, duty="keep"), Readings(links=(), repairs=7))
    await helped.until(lambda: helped.seen[-1].repairs == 7)
    assert await helped.asked() == await helped.asked() == b'{"do":"statistics"}\n'  # at the start, at what is new
    with capture_logs() as logs:
        helped.keeper.use_policy(policy_of({"egress": "1gbit"}))
    assert events(logs) == ["traffic_control_differs"]
    assert await helped.asked() == b'{"do":"reload"}\n'


async def test_a_helper_that_dies_leaves_an_error_a_metric_and_a_gateway_that_goes_on(helped):
    helped.says(Readings(links=(LINK,), repairs=1))
    await helped.until(lambda: helped.seen[-1].links)
    helped.process.exit_code = -9
    with capture_logs() as logs:
        await helped.dies()
        await helped.until(lambda: logs)
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("traffic_control_unattended", "error")
    assert "exit code -9" in line["detail"] and "restart the gateway" in line["detail"]
    await helped.until(lambda: not helped.seen[-1].attended)
    assert list(helped.seen[-1].links) == [LINK]
    helped.keeper.use_policy(POLICY)


async def test_a_helper_that_talks_nonsense_is_no_helper(helped):
    with capture_logs() as logs:
        helped.writer.write(b"hello\n")
        await helped.until(lambda: logs)
    assert events(logs) == ["traffic_control_unattended"]
    assert "cannot be understood" in logs[0]["detail"]


async def test_a_silent_helper_is_told_and_forgiven(helped, monkeypatch):
    helped.now += SILENT_S + 1
    with capture_logs() as logs:
        helped.keeper._listened()
        helped.keeper._listened()
        assert events(logs) == ["traffic_control_unattended"]
        assert not helped.seen[-1].attended
        helped.says(Readings(links=(), repairs=0))
        await helped.until(lambda: helped.seen[-1].attended)
    assert events(logs) == ["traffic_control_unattended", "traffic_control_attended"]


async def test_at_the_end_it_is_asked_to_stop_and_waited_for():
    helped = Helped(FakeProcess())
    await helped.start()
    assert b"statistics" in await helped.asked()
    closing = asyncio.create_task(helped.keeper.close())
    assert await helped.asked() == b'{"do":"stop"}\n'
    with capture_logs() as logs:
        helped.says(Ended(released=True))
        await helped.dies()
        await closing
    assert events(logs) == ["traffic_control_ended"]
    assert not helped.process.killed


async def test_a_helper_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(keeper, "STOP_S", 0.01)
    helped = Helped(FakeProcess(deaf=True))
    await helped.start()
    with capture_logs() as logs:
        await helped.keeper.close()
    assert events(logs) == ["keeper_killed"]
    assert helped.process.killed
    await helped.dies()


async def test_without_the_capability_there_are_marks_only_and_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(keeper, "effective", frozenset)
    seen: list[LinksSeen] = []
    without = spawn(POLICY, tmp_path)
    assert without is not None
    with capture_logs() as logs:
        await without.start(seen.append)
        without.use_policy(POLICY)
        await without.close()
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("traffic_control_unattended", "warning")
    assert "CAP_NET_ADMIN is missing" in line["detail"] and "AmbientCapabilities=" in line["detail"]
    assert [each.attended for each in seen] == [False]


async def test_a_helper_that_cannot_be_started_stops_no_gateway(monkeypatch, tmp_path):
    monkeypatch.setattr(keeper, "effective", lambda: frozenset({Capability.NET_ADMIN}))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    without = spawn(POLICY, tmp_path)
    assert without is not None
    with capture_logs() as logs:
        await without.start(lambda seen: None)
        await without.close()
    assert events(logs) == ["traffic_control_unattended"]
    assert "missing" in logs[0]["detail"]


def test_without_interfaces_nobody_is_started(tmp_path: Path):
    bare = policy_of()
    assert spawn(type(bare)(classes=bare.classes, interfaces=(), flows=(), safety=bare.safety), tmp_path) is None


async def test_a_gateway_that_never_got_to_start_leaves_no_helper():
    helped = Helped(FakeProcess())
    await helped.keeper.close()
    assert helped._its.recv(1) == b""
    helped._its.close()


async def test_another_program_goes_on_with_the_helper():
    """The half of a line that this one had heard included."""
    ours, its = socket.socketpair()
    child = subprocess.Popen(["/bin/sh", "-c", "exit 3"])  # noqa: ASYNC220
    child.returncode = 0  # the other program waits for it
    first = Keeper(POLICY, child, ours)
    await first.start(lambda seen: None)
    said = encode(Readings(links=(LINK,), repairs=2))
    its.send(said[:9])
    async with asyncio.timeout(PATIENCE_S):
        while first.handed().held != said[:9]:
            await asyncio.sleep(0.01)
    handed = first.handed()
    assert handed.fd is not None and os.get_inheritable(handed.fd)
    assert first._writer is not None
    first._writer.transport.pause_reading()  # as after an exec, it is no more
    for each in first._tasks:
        each.cancel()
    seen: list[LinksSeen] = []
    second = Keeper.adopt(msgspec.structs.replace(handed, fd=os.dup(handed.fd)), POLICY)
    await second.start(seen.append)
    its.send(said[9:])
    async with asyncio.timeout(PATIENCE_S):
        while seen[-1].repairs != 2:
            await asyncio.sleep(0.01)
    with capture_logs() as logs:
        its.close()
        async with asyncio.timeout(PATIENCE_S):
            while not logs:
                await asyncio.sleep(0.01)
    assert "with exit code 3" in logs[0]["detail"]
    first._writer.close()


async def test_where_there_is_no_helper_the_reason_is_handed_over():
    first = Keeper(POLICY, None, None, why="CAP_NET_ADMIN is missing")
    with capture_logs() as logs:
        second = Keeper.adopt(first.handed(), POLICY)
        await second.start(lambda seen: None)
    assert "CAP_NET_ADMIN is missing" in logs[0]["detail"]
