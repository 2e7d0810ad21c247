# SPDX-License-Identifier: Apache-2.0
"""A process seen from its supervisor; here it is a shell, and the test speaks for it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.supervise.channel import Channel, channel_pair
from proxy.supervise.worker_process import WorkerFailedError, WorkerProcess, said

PATIENCE_S = 30.0


@pytest.fixture
async def begin() -> AsyncIterator[Callable[[str], object]]:
    async with AsyncExitStack() as open_channels:

        async def start(script: str) -> tuple[WorkerProcess, Channel]:
            process = subprocess.Popen(["/bin/sh", "-c", script])  # noqa: ASYNC220
            process.returncode = 0
            ours, its = map(Channel, channel_pair())
            worker = WorkerProcess(process.pid, ours, name="worker 0.0", place=0, generation=0)
            await ours.start()
            await its.start()
            open_channels.push_async_callback(its.close)
            return worker, its

        yield start


async def test_it_serves_when_it_says_so(begin) -> None:
    worker, channel = await begin("exec sleep 60")
    assert worker.state == "starting" and not worker.gone
    channel.tell("ready")
    await worker.ready()
    assert worker.state == "ready"
    channel.tell("drained", 3)
    worker.signal(signal.SIGTERM)
    assert await worker.exit_code() == -signal.SIGTERM
    assert (worker.unfinished, worker.gone, worker.lost) == (3, True, True)
    worker.signal(signal.SIGTERM)  # nobody's by now


async def test_what_it_says_of_its_failure_is_the_reason(begin) -> None:
    worker, channel = await begin("exec sleep 60")
    channel.tell("failed", "no.pem: no such file")
    with pytest.raises(WorkerFailedError, match=r"^no\.pem: no such file$"):
        await worker.ready()
    assert await worker.end(within_s=0.0) == -signal.SIGKILL


async def test_one_that_ends_without_a_word_is_told_of_by_its_exit_code(begin) -> None:
    worker, _ = await begin("exit 3")
    with pytest.raises(WorkerFailedError, match=r"^worker 0\.0 ended with exit code 3 while it started$"):
        await worker.ready()
    assert await worker.exit_code() == 3


async def test_a_last_word_is_heard_even_when_the_end_is_seen_first(begin) -> None:
    worker, channel = await begin("exit 1")
    while not worker.gone:
        await asyncio.sleep(0.01)
    channel.tell("failed", "why")
    with pytest.raises(WorkerFailedError, match=r"^why$"):
        await worker.ready()
    await worker.exit_code()


async def test_whoever_does_not_end_in_time_is_killed(begin, tmp_path: Path) -> None:
    worker, _ = await begin(f"trap '' TERM; : >{tmp_path}/deaf; while :; do sleep 0.1; done")
    while not (tmp_path / "deaf").exists():
        await asyncio.sleep(0.01)
    worker.signal(signal.SIGTERM)
    assert await worker.end(within_s=0.05) == -signal.SIGKILL


async def test_one_that_somebody_else_waited_for_has_ended_all_the_same(begin) -> None:
    """The kernel does, where whoever started us ignores SIGCHLD."""
    worker, _ = await begin("exec sleep 60")
    os.kill(worker.pid, signal.SIGKILL)
    os.waitpid(worker.pid, 0)  # noqa: ASYNC222  it is dead, and the loop must not be first
    assert await asyncio.wait_for(worker.exit_code(), PATIENCE_S) == 0
    assert worker.gone


async def test_one_that_cannot_be_watched_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    process = subprocess.Popen(["/bin/sleep", "60"])  # noqa: ASYNC220
    ours, its = channel_pair()
    with its, pytest.raises(OSError, match="Too many open files"):
        WorkerProcess.of(process, ours, name="worker 0.0", place=0, generation=0)
    assert process.returncode == -signal.SIGKILL
    assert ours.fileno() == -1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with exit code 0"),
        (7, "ended with exit code 7"),
        (-9, "was ended by SIGKILL"),
        (-42, "was ended by signal 42"),
    ],
)
def test_what_an_exit_code_tells(code: int, text: str) -> None:
    assert said(code) == text
