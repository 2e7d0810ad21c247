# SPDX-License-Identifier: Apache-2.0
"""Workers that start together: one for each place of a bank, each replaced where it dies, all drained together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from time import monotonic

import msgspec
import structlog

from proxy.supervise.start import Start
from proxy.supervise.worker_process import HandedWorker, WorkerFailedError, WorkerProcess, said

__all__ = ["Generation", "HandedGeneration", "pause_before", "watch"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
LIVED_S = 60.0
"""Whoever lived for so long did not die of its start."""
DRAIN_ANSWER_S = 5.0
WATCH_S, HUNG_S = 5.0, 30.0
STARTS_HUNG_S = 120.0
"""The same for one that reads its program from a slow disk, and hears nothing meanwhile."""
KILL_S = 40.0
"""A worker drains for 30 s at most; one that is still there after that does not hear."""
RETIRED_S = 600.0 + KILL_S
"""One that was replaced ends with the last stream or upload, or after so long (proxy/server.py)."""
_log = structlog.get_logger("inferlane.supervisor")


def pause_before(last_s: float, lived_s: float) -> float:
    """How long a place stays empty before a worker is started there again: longer each time, unless it lived well."""
    if lived_s >= LIVED_S or last_s == 0.0:
        return FIRST_PAUSE_S
    return min(2 * last_s, LONGEST_PAUSE_S)


class HandedGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """What another program in this process needs to go on with one."""

    number: int
    first: int
    """Of its places."""
    restarts: list[int]
    """By place, in their order."""
    retiring: bool
    workers: list[HandedWorker]


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
        self.retiring = False
        """Whether others have its place, and it ends when everybody has left."""
        self.current = False
        """Whether new connections go to it."""

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
        await self._keep_no_more()
        return sum(await asyncio.gather(*(self._tell(each, "drain") for each in self.workers)))

    async def retire(self) -> int:
        """Others have what is new: have all serve those who are here until they leave; `retired` waits. How many
        requests are in flight."""
        self.retiring = True
        self.lead(current=False)
        await self._keep_no_more()
        return sum(await asyncio.gather(*(self._tell(each, "retire") for each in self.workers)))

    async def retired(self) -> int:
        """Until all have ended. How many requests they left unfinished, as far as is known."""
        return await self.drained(within_s=RETIRED_S)

    def lead(self, *, current: bool) -> None:
        """From now on new connections go to it, or to others."""
        self.current = current
        for each in self.workers:
            each.current = current
            if current:
                each.tell("accept")

    @property
    def whole(self) -> bool:
        """Whether somebody serves at every place."""
        return len(self.workers) == len(self.places) and all(
            each.state == "ready" and not each.lost for each in self.workers
        )

    @property
    def empty(self) -> list[int]:
        """Places where somebody shall serve and nobody is, not even one that starts."""
        return [place for place in self.places if place not in self._workers] if self._keepers else []

    def handed(self) -> HandedGeneration:
        """For another program in this process. Raises ChannelError: not now."""
        workers = [each for each in self.workers if not each.gone]
        missing = {*self.places} - {each.place for each in workers}
        return HandedGeneration(
            number=self.number,
            first=self.places.start,
            # One that is missing will be started again there, under another name.
            restarts=[self.restarts[place] + (place in missing) for place in self.places],
            retiring=self.retiring,
            workers=[each.handed() for each in workers],
        )

    async def adopt(self, handed: HandedGeneration) -> None:
        """Instead of `start`: go on with what another program has started."""
        self.restarts = dict(zip(self.places, handed.restarts, strict=True))
        self.retiring = handed.retiring
        for each in handed.workers:
            self._workers[each.place] = await WorkerProcess.adopt(each, generation=self.number)
        if not self.retiring:
            self._keepers = [asyncio.create_task(self._keep(place)) for place in self.places]

    async def drained(self, *, within_s: float = KILL_S) -> int:
        """Until all have ended. How many requests they left unfinished, as far as is known."""
        workers = self.workers
        watching = [asyncio.create_task(watch(each)) for each in workers]
        try:
            await asyncio.gather(*(self._end(each, within_s=within_s) for each in workers))
        finally:
            for each in watching:
                each.cancel()
        return sum(each.unfinished or 0 for each in workers)

    async def end(self) -> None:
        """At once, whatever they do."""
        await self._keep_no_more()
        await asyncio.gather(*(self._end(each, within_s=0.0) for each in self.workers))

    async def _keep_no_more(self) -> None:
        keepers, self._keepers = self._keepers, []
        for each in keepers:
            each.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    async def _spawn(self, place: int) -> WorkerProcess:
        again = self.restarts[place]
        name = f"worker {self.number}.{place}.{again}" if again else f"worker {self.number}.{place}"
        worker = await WorkerProcess.spawn(name, lambda: self._named(name, place))
        worker.current = self.current
        if self.current:  # they may have taken over since it was told what to be
            worker.tell("accept")
        self._workers[place] = worker
        return worker

    def _named(self, name: str, place: int) -> Start:
        document = self._document(place)
        return msgspec.structs.replace(document, name=name) if len(self.places) > 1 else document

    async def _ready(self, worker: WorkerProcess) -> None:
        await worker.ready()
        await self._greet(worker)

    async def _tell(self, worker: WorkerProcess, what: str) -> int:
        if worker.state == "starting":
            await self._end(worker, within_s=0.0)  # it has nothing yet
            return 0
        worker.state = "draining"
        try:
            return int(await worker.ask(what, timeout_s=DRAIN_ANSWER_S))
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
        pause_s = 0.0
        while True:
            worker = self._workers.get(place) or await self._again(place)
            watching = asyncio.create_task(watch(worker))
            try:
                detail = await self._serves(worker)
                code = await (worker.exit_code() if detail is None else worker.end(within_s=KILL_S))
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

    async def _serves(self, worker: WorkerProcess) -> str | None:
        """Until it does; or why it never will."""
        if worker.state == "ready":
            return None
        try:
            await self._ready(worker)
        except WorkerFailedError as error:
            return str(error)
        _log.info("worker_replaced", worker=worker.name, pid=worker.pid)
        return None

    async def _again(self, place: int) -> WorkerProcess:
        pause_s = 0.0
        while True:
            try:
                return await self._spawn(place)
            except OSError as error:  # no memory, no descriptors, no processes: a moment later there may be
                pause_s = pause_before(pause_s, 0.0)
                _log.error("worker_not_started", place=place, detail=str(error), again_in_s=pause_s)
                await asyncio.sleep(pause_s)


async def watch(worker: WorkerProcess) -> None:
    """One that answers nothing for so long never will, and may hold what the others wait for."""
    while True:
        await asyncio.sleep(WATCH_S)
        patience_s = STARTS_HUNG_S if worker.state == "starting" else HUNG_S
        try:
            await worker.ask("status", timeout_s=patience_s)
        except TimeoutError:
            _log.error("worker_hung", worker=worker.name, pid=worker.pid, detail=f"no answer for {patience_s:g} s")
            worker.signal(signal.SIGKILL)
        except OSError:  # it hung up, and ends; or it does not know how it is yet
            if worker.lost:
                await asyncio.sleep(KILL_S)
                _log.error("worker_hung", worker=worker.name, pid=worker.pid, detail="it hung up, and did not end")
                worker.signal(signal.SIGKILL)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """What went wrong first; the others most often say the same."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
