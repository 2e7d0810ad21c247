# SPDX-License-Identifier: Apache-2.0
"""Workers that start together: one for each place of a bank, each replaced where it dies, all drained together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from time import monotonic

import structlog

from proxy.supervise.start import Start
from proxy.supervise.worker_process import WorkerFailedError, WorkerProcess, said

__all__ = ["Generation", "pause_before"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
LIVED_S = 60.0
"""Whoever lived for so long did not die of its start."""
DRAIN_ANSWER_S = 5.0
WATCH_S, HUNG_S = 5.0, 30.0
KILL_S = 40.0
"""A worker drains for 30 s at most; one that is still there after that does not hear."""
_log = structlog.get_logger("inferlane.supervisor")


def pause_before(last_s: float, lived_s: float) -> float:
    """How long a place stays empty before a worker is started there again: longer each time, unless it lived well."""
    if lived_s >= LIVED_S or last_s == 0.0:
        return FIRST_PAUSE_S
    return min(2 * last_s, LONGEST_PAUSE_S)


class Generation:
    """The workers of a bank of places.

    document: what the worker at a place is told, as of now. greet: what a ready one is asked before it counts. left:
    told of a worker that is gone, before another comes to its place.
    """

    def __init__(
        self,
        number: int,
        places: range,
        document: Callable[[int], Start],
        *,
        greet: Callable[[WorkerProcess], Awaitable[None]],
        left: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = number
        self.places = places
        self.restarts = dict.fromkeys(places, 0)
        """By place, how often a worker was replaced there."""
        self._document = document
        self._greet = greet
        self._left = left
        self._workers: dict[int, WorkerProcess] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._draining = False

    def __repr__(self) -> str:
        return f"<Generation {self.number} at {self.places}: {self.workers!r}>"

    @property
    def workers(self) -> list[WorkerProcess]:
        """Those that live, in the order of their places."""
        return [self._workers[place] for place in self.places if place in self._workers]

    async def start(self) -> None:
        """All of them ready, or none is there. Raises WorkerFailedError or OSError."""
        try:
            for place in self.places:
                await self._spawn(place)
            async with asyncio.TaskGroup() as starting:
                for worker in self.workers:
                    starting.create_task(self._ready(worker))
        except* (WorkerFailedError, OSError) as failed:
            await self.end()
            raise _first(failed) from None
        self._keepers = [asyncio.create_task(self._keep(place)) for place in self.places]

    async def drain(self) -> int:
        """Have all of them finish what they have and end; `drained` waits. How many requests are in flight."""
        self._draining = True
        for each in self._keepers:
            each.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        return sum(await asyncio.gather(*map(self._drain, self.workers)))

    async def drained(self) -> int:
        """Until all have ended. How many requests they left unfinished, as far as is known."""
        workers = self.workers
        await asyncio.gather(*(self._end(each, within_s=KILL_S) for each in workers))
        return sum(each.unfinished or 0 for each in workers)

    async def end(self) -> None:
        """At once, whatever they do."""
        self._draining = True
        for each in self._keepers:
            each.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(each, within_s=0.0) for each in self.workers))

    async def _spawn(self, place: int) -> WorkerProcess:
        again = self.restarts[place]
        name = f"worker {self.number}.{place}.{again}" if again else f"worker {self.number}.{place}"
        worker = await WorkerProcess.spawn(name, self._document(place))
        self._workers[place] = worker
        return worker

    async def _ready(self, worker: WorkerProcess) -> None:
        await worker.ready()
        await self._greet(worker)

    async def _drain(self, worker: WorkerProcess) -> int:
        if worker.state == "starting":
            await self._end(worker, within_s=0.0)  # it has nothing yet
            return 0
        worker.state = "draining"
        try:
            return int(await worker.ask("drain", timeout_s=DRAIN_ANSWER_S))
        except OSError as error:
            if not worker.lost:
                _log.warning("worker_does_not_drain", worker=worker.name, pid=worker.pid, detail=str(error))
            return 0

    async def _end(self, worker: WorkerProcess, *, within_s: float) -> None:
        await worker.end(within_s=within_s)
        self._workers.pop(worker.place, None)
        self._left(worker)

    async def _keep(self, place: int) -> None:
        """Somebody is at this place, or will soon be."""
        pause_s, detail = 0.0, None
        while True:
            worker = self._workers[place]
            watching = asyncio.create_task(_watch(worker))
            try:
                code = await worker.exit_code()
            finally:
                watching.cancel()
            del self._workers[place]
            self._left(worker)
            pause_s = pause_before(pause_s, monotonic() - worker.since)
            _log.error(
                "worker_ended", worker=worker.name, pid=worker.pid, how=said(code), detail=detail, again_in_s=pause_s
            )
            await asyncio.sleep(pause_s)
            self.restarts[place] += 1
            worker = await self._again(place)
            detail = None
            try:
                await self._ready(worker)
                _log.info("worker_replaced", worker=worker.name, pid=worker.pid)
            except WorkerFailedError as error:
                detail = str(error)

    async def _again(self, place: int) -> WorkerProcess:
        pause_s = 0.0
        while True:
            try:
                return await self._spawn(place)
            except OSError as error:  # no memory, no descriptors, no processes: a moment later there may be
                pause_s = pause_before(pause_s, 0.0)
                _log.error("worker_not_started", place=place, detail=str(error), again_in_s=pause_s)
                await asyncio.sleep(pause_s)


async def _watch(worker: WorkerProcess) -> None:
    """One that answers nothing for so long never will, and may hold what the others wait for."""
    while True:
        await asyncio.sleep(WATCH_S)
        try:
            await worker.ask("status", timeout_s=HUNG_S)
        except TimeoutError:
            if worker.state == "ready":
                _log.error("worker_hung", worker=worker.name, pid=worker.pid, detail=f"no answer for {HUNG_S:g} s")
                worker.signal(signal.SIGKILL)
        except OSError:  # it hung up, and ends; or it does not know how it is yet
            continue


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """What went wrong first; the others most often say the same."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
