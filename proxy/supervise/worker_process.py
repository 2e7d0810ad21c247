# SPDX-License-Identifier: Apache-2.0
"""One worker as its supervisor sees it: started by exec, never by fork, told what to be, watched until it has ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import msgspec

import qos
from proxy.supervise.channel import Channel, HandedChannel, channel_pair
from proxy.supervise.start import Start

__all__ = ["HandedWorker", "WorkerFailedError", "WorkerProcess", "said", "spawned"]

LAST_WORD_S = 0.5
"""For what a process said before it ended, which is in the kernel by then."""
State = Literal["starting", "ready", "draining"]


class WorkerFailedError(Exception):
    """It could not start: one line for people."""


class HandedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """What another program in this process needs to go on with a child of it."""

    pid: int
    channel: HandedChannel
    name: str
    place: int
    state: State
    since: float
    unfinished: int | None


def spawned(module: str, descriptors: Iterable[int] = ()) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process by exec, and our end of its channel. descriptors: what else it inherits. Raises OSError."""
    ours, its = channel_pair()
    try:
        process = subprocess.Popen(
            # -P: never import from the directory that somebody happened to start us in.
            [sys.executable, "-P", "-m", module, "--fd", str(its.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[its.fileno(), *descriptors],
            env={**os.environ, "PYTHONPATH": str(Path(qos.__path__[0]).parent)},
            process_group=0,  # what the terminal sends to all is for the supervisor alone
        )
    except OSError:
        ours.close()
        raise
    finally:
        its.close()
    return process, ours


class WorkerProcess:
    """A process that exists, from `spawn` until `exit_code` is there."""

    def __init__(self, pid: int, channel: Channel, *, name: str, place: int, generation: int) -> None:
        self.pid = pid
        self.name = name
        self.place = place
        self.generation = generation
        self.state: State = "starting"
        self.current = True
        """Whether it is of the generation that new connections go to."""
        self.since = monotonic()
        self.unfinished: int | None = None
        """Requests that it ended with; None: it has not said."""
        loop = asyncio.get_running_loop()
        self._channel = channel
        self._ready: asyncio.Future[str | None] = loop.create_future()
        self._exit: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        loop.add_reader(self._pidfd, self._ended)
        channel.told |= {"ready": self._is_ready, "failed": self._has_failed, "drained": self._has_drained}

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.name}, pid {self.pid}, {self.state}>"

    @classmethod
    async def spawn(cls, name: str, document: Callable[[], Start]) -> WorkerProcess:
        """Start the process and tell it what to be. Raises OSError: there is none."""
        start = document()
        process, ours = spawned("proxy.supervise.worker", _descriptors(start))
        worker = cls.of(process, ours, name=name, place=start.place, generation=start.generation)
        await worker.open()
        # As it is now: whoever waits for nothing after this has a worker that misses no change.
        worker._channel.tell("start", msgspec.to_builtins(document(), builtin_types=(bytes,)))
        return worker

    @classmethod
    def of(
        cls, process: subprocess.Popen[bytes], sock: socket.socket, *, name: str, place: int, generation: int
    ) -> WorkerProcess:
        """One that was just started, with our end of its channel. Raises OSError: it cannot be watched, and is gone."""
        try:
            worker = cls(process.pid, Channel(sock), name=name, place=place, generation=generation)
        except OSError:
            sock.close()
            process.kill()
            process.wait()
            raise
        process.returncode = 0  # it is waited for by `_ended`, and not by Popen, which an exec would lose
        return worker

    @classmethod
    async def adopt(cls, handed: HandedWorker, *, generation: int) -> WorkerProcess:
        """Instead of `spawn`: go on with one that this process has started when it ran another program."""
        channel = Channel.adopt(handed.channel)
        worker = cls(handed.pid, channel, name=handed.name, place=handed.place, generation=generation)
        worker.state, worker.since, worker.unfinished = handed.state, handed.since, handed.unfinished
        if worker.state != "starting":
            worker._ready.set_result(None)
        await channel.start()
        return worker

    def handed(self) -> HandedWorker:
        """For another program in this process. Raises ChannelError: not now."""
        return HandedWorker(
            pid=self.pid,
            channel=self._channel.handed(),
            name=self.name,
            place=self.place,
            state=self.state,
            since=self.since,
            unfinished=self.unfinished,
        )

    async def open(self) -> None:
        """Listen to it."""
        await self._channel.start()

    async def ready(self) -> None:
        """Until it serves, which takes as long as its models. Raises WorkerFailedError: it never will."""
        both: list[asyncio.Future[Any]] = [self._ready, self._exit]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            with suppress(TimeoutError):  # its last word may come later than its end
                await asyncio.wait_for(asyncio.shield(self._ready), LAST_WORD_S)
        if not self._ready.done():
            raise WorkerFailedError(f"{self.name} {said(self._exit.result())} while it started")
        detail = self._ready.result()
        if detail is not None:
            raise WorkerFailedError(detail)

    async def ask(self, kind: str, payload: object = None, *, timeout_s: float) -> Any:
        """Its answer. Raises OSError, of which TimeoutError is one: there is none."""
        return await self._channel.ask(kind, payload, timeout_s=timeout_s)

    def tell(self, kind: str, payload: object = None) -> None:
        """One way."""
        self._channel.tell(kind, payload)

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self._exit.done()

    @property
    def lost(self) -> bool:
        """Whether it has ended, or hung up, which comes to the same soon."""
        return self._channel.closed or self.gone

    async def exit_code(self) -> int:
        """Until it has ended; negative: the signal that ended it."""
        code = await asyncio.shield(self._exit)
        await self._channel.close()
        return code

    async def end(self, *, within_s: float) -> int:
        """The same with patience for so long only; then it is killed."""
        try:
            async with asyncio.timeout(within_s):
                return await self.exit_code()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.exit_code()

    def signal(self, number: signal.Signals) -> None:
        """Send it one, if it is still there."""
        if not self.gone:
            signal.pidfd_send_signal(self._pidfd, number)

    def _is_ready(self, _: object) -> None:
        if not self._ready.done():
            self.state = "ready"
            self._ready.set_result(None)

    def _has_failed(self, detail: Any) -> None:
        if not self._ready.done():
            self._ready.set_result(str(detail))

    def _has_drained(self, unfinished: Any) -> None:
        self.unfinished = int(unfinished)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # whoever started us ignores SIGCHLD, and so do we: how it ended is not known
            code = 0
        self._exit.set_result(code)


def said(code: int) -> str:
    """What an exit code tells, for people."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"


def _descriptors(start: Start) -> Iterator[int]:
    for pair in chain.from_iterable(start.sockets.values()):
        yield from (fd for fd in pair if fd is not None)
    if start.ledger is not None:
        yield start.ledger.fd
        yield from start.ledger.event_fds
