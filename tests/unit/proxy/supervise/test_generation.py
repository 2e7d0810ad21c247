# SPDX-License-Identifier: Apache-2.0
"""When a worker is started again. Workers themselves: tests/integration/test_workers.py."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.supervise.channel import Channel
from proxy.supervise.generation import (
    FIRST_PAUSE_S,
    HUNG_S,
    LIVED_S,
    LONGEST_PAUSE_S,
    STARTS_HUNG_S,
    Generation,
    pause_before,
    watch,
)
from proxy.supervise.start import ConfigText, Start
from proxy.supervise.worker_process import WorkerProcess

_TEXT = ConfigText(path="gateway.yaml", started="")


def test_pauses_double_up_to_a_bound() -> None:
    pauses, last = [], 0.0
    for _ in range(9):
        last = pause_before(last, 0.5)
        pauses.append(last)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


@given(st.floats(0.0, 20.0), st.floats(0.0, 1e6))
def test_a_pause_is_never_shorter_than_the_first_nor_longer_than_the_longest(last_s: float, lived_s: float) -> None:
    assert FIRST_PAUSE_S <= max(pause_before(last_s, lived_s), FIRST_PAUSE_S) <= LONGEST_PAUSE_S
    assert pause_before(last_s, LIVED_S + lived_s) == FIRST_PAUSE_S


def document(place: int, text: ConfigText = _TEXT) -> Start:
    return Start(config=text, state_dir="", place=place, generation=0, siblings=[], sockets={}, keys=b"")


async def greeted(_: WorkerProcess) -> None:
    return


class Deaf:
    """A worker that answers the first so many questions."""

    def __init__(self, answers: int, state: str) -> None:
        self.name, self.pid, self.state = "worker 0.0", 1, state
        self.answers = answers
        self.signals: list[int] = []
        self.patience_s = 0.0

    async def ask(self, kind: str, *, timeout_s: float) -> None:
        self.patience_s = timeout_s
        self.answers -= 1
        if self.answers < 0:
            raise TimeoutError

    def signal(self, number: int) -> None:
        self.signals.append(number)
        raise asyncio.CancelledError  # as `_keep` does when it has ended


@pytest.mark.parametrize(
    ("state", "patience_s"), [("starting", STARTS_HUNG_S), ("ready", HUNG_S), ("draining", HUNG_S)]
)
async def test_one_that_hangs_is_killed_and_one_that_answers_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, state: str, patience_s: float
) -> None:
    monkeypatch.setattr("proxy.supervise.generation.WATCH_S", 0.0)
    worker = Deaf(3, state)
    with pytest.raises(asyncio.CancelledError):
        await watch(worker)  # type: ignore[arg-type]
    assert (worker.signals, worker.answers, worker.patience_s) == ([signal.SIGKILL], -1, patience_s)


@pytest.mark.parametrize(("state", "hears"), [("starting", True), ("draining", True), ("draining", False)])
async def test_one_that_hangs_while_it_starts_or_is_seen_out_is_killed(monkeypatch, state: str, hears: bool) -> None:
    """It may hold what the others wait for then, too."""
    monkeypatch.setattr("proxy.supervise.generation.WATCH_S", 0.01)
    monkeypatch.setattr("proxy.supervise.generation.HUNG_S", 0.1)
    monkeypatch.setattr("proxy.supervise.generation.STARTS_HUNG_S", 0.1)
    monkeypatch.setattr("proxy.supervise.generation.KILL_S", 0.1)
    started = subprocess.Popen

    def sleeping(_: object, *, pass_fds: Sequence[int], **__: object) -> subprocess.Popen[bytes]:
        return started(["/bin/sleep", "60"], pass_fds=pass_fds if hears else ())

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    generation = Generation(0, range(1), document, greet=greeted, left=lambda _: None)
    worker = await generation._spawn(0)
    worker.state = state  # type: ignore[assignment]
    ending = generation._keep(0) if state == "starting" else generation.retired()
    ended = asyncio.create_task(ending)
    async with asyncio.timeout(10.0):
        assert await worker.exit_code() == -signal.SIGKILL
    ended.cancel()
    await asyncio.gather(ended, return_exceptions=True)
    await generation.end()


async def test_a_reload_that_ends_while_a_process_starts_is_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not among the workers yet, so nobody else would tell it."""
    told: list[Any] = []
    theirs: list[socket.socket] = []
    started = subprocess.Popen

    def sleeping(_: object, *, pass_fds: Sequence[int], **__: object) -> subprocess.Popen[bytes]:
        theirs.append(socket.socket(fileno=os.dup(pass_fds[0])))
        return started(["/bin/sleep", "60"])

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    text = ConfigText(path="gateway.yaml", started="as it was")
    generation = Generation(0, range(1), lambda place: document(place, text), greet=greeted, left=lambda _: None)
    spawning = asyncio.create_task(generation._spawn(0))
    await asyncio.sleep(0)
    assert theirs and not generation.workers
    text = ConfigText(path="gateway.yaml", started="as it was", reloaded="as it is now")
    (worker,) = [await spawning]
    channel = Channel(theirs[0], told={"start": told.append})
    await channel.start()
    async with asyncio.timeout(10.0):
        while not told:
            await asyncio.sleep(0.01)
    assert told[0]["config"]["reloaded"] == "as it is now"
    await worker.end(within_s=0.0)
    await channel.close()
