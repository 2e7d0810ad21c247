# SPDX-License-Identifier: Apache-2.0
"""All workers there are, edition by edition, and which of them gets what is new: one takes over from another.

New connections go to the current edition. The one before it keeps the packets of its connections, which the kernel
finds by their ids, until its clients have moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from proxy.config.loading import Config
from proxy.keys import Keys
from proxy.steering.program import Steering
from proxy.supervise.edition import Edition, HandedEdition, Shared
from proxy.supervise.places import free_range
from proxy.supervise.rows import Rows
from proxy.supervise.sockets import Sockets
from proxy.supervise.start import ConfigText
from proxy.supervise.worker_process import WorkerFailedError, WorkerProcess

__all__ = ["BANKS", "Fleet"]

BANKS = 2
"""Editions that may live at once: one that serves and one that finishes, or that starts."""
_log = structlog.get_logger("inferlane.supervisor")


class Fleet:
    """greet: what a ready worker is asked before it counts; departed: told of one that is gone."""

    def __init__(
        self,
        *,
        state_dir: Path,
        keys: Keys,
        sockets: Sockets,
        greet: Callable[[WorkerProcess], Awaitable[None]],
        departed: Callable[[WorkerProcess], None],
    ) -> None:
        self.sockets = sockets
        self.editions: list[Edition] = []
        """The oldest first."""
        self._keys = keys
        self._current: Edition | None = None
        self._shared = Shared(
            state_dir=state_dir, keys=keys, sockets=sockets, greet=greet, departed=departed, siblings=self._siblings
        )
        self._seeing_out: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Fleet {self.editions!r}>"

    @property
    def current(self) -> Edition:
        """To which new connections go."""
        assert self._current is not None
        return self._current

    @property
    def leaving(self) -> Edition | None:
        """One that still finishes."""
        return next((each for each in self.editions if each.generation.retiring), None)

    def processes(self) -> list[WorkerProcess]:
        """Every worker that lives."""
        return [worker for each in self.editions for worker in each.generation.workers]

    def restarts(self) -> dict[int, int]:
        """By place, how often a worker was replaced there."""
        return {place: count for each in self.editions for place, count in each.generation.restarts.items()}

    def missing(self) -> list[str]:
        """What else than workers keeps the gateway from serving."""
        if self._current is None:
            return []
        models = self._current.models
        empty = [f"place {each} has no worker" for each in self._current.generation.empty]
        return empty if models is None else [*models.missing(), *empty]

    def links(self) -> list[WorkerProcess]:
        """Processes that are no workers and use the machine all the same."""
        return [link for each in self.editions if each.models is not None for link in each.models.links()]

    def edition(self, config: Config, text: ConfigText, count: int, *, rows: Rows | None) -> Edition:
        """The next one; nothing of it is there yet."""
        number = 1 + max((each.generation.number for each in self.editions), default=-1)
        places = free_range([each.places for each in self.editions], count)
        return Edition(number, places, config, text, self._shared, rows=rows)

    async def start(self, edition: Edition) -> None:
        """The first. Raises BackendError, WorkerFailedError or OSError with one line for people."""
        self._current = edition
        self.editions.append(edition)
        self._steer()
        edition.generation.lead(current=True)
        await edition.start()

    async def bring_up(self, edition: Edition, *, within_s: float) -> None:
        """One that nobody is sent to yet. Raises the same, and nothing of it is left; TimeoutError is an OSError."""
        self.editions.append(edition)
        try:
            self.sockets.grow(edition.places.stop)
            async with asyncio.timeout(within_s):
                await edition.start()
            if not edition.generation.whole:
                raise WorkerFailedError("a worker ended before all were ready")
        except BaseException as error:
            await edition.close()
            self.editions.remove(edition)
            self._close_rows(edition)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"it was not ready within {within_s:g} s") from None
            raise

    async def take_over(self, edition: Edition) -> int:
        """What is new goes to this one from now on. How many requests the one before it has in flight."""
        before, self._current = self.current, edition
        try:
            self._steer()
        except OSError:
            self._current = before
            raise
        edition.generation.lead(current=True)
        self._introduce()
        in_flight = await before.generation.retire()
        self._see_out(before)
        return in_flight

    async def drain(self) -> int:
        """Have all finish what they have, and end; `drained` waits. How many requests are in flight."""
        await self._see_nobody_out()
        return sum(await asyncio.gather(*(each.generation.drain() for each in self.editions)))

    async def drained(self) -> int:
        """How many were left unfinished."""
        return sum(await asyncio.gather(*(each.generation.drained() for each in self.editions)))

    async def close(self) -> None:
        """End everything."""
        await self._see_nobody_out()
        await asyncio.gather(*(each.close() for each in self.editions))
        while self.editions:
            self._close_rows(self.editions.pop())
        self.sockets.close()

    def handed(self) -> list[HandedEdition] | None:
        """For another program in this process. None, or ChannelError: not now."""
        handed = [each.handed() for each in self.editions]
        return [each for each in handed if each is not None] if all(handed) else None

    async def adopt(self, handed: Sequence[HandedEdition]) -> None:
        """Go on with what another program has started."""
        for each in handed:
            edition = await Edition.adopt(each, self._shared, self.editions)
            self.editions.append(edition)
            if not edition.generation.retiring:
                self._current = edition
                edition.generation.lead(current=True)
        self._steer()
        # Only now: one that has finished meanwhile takes its places out of what is steered.
        for edition in self.editions:
            if edition.generation.retiring:
                self._see_out(edition)

    def _see_out(self, edition: Edition) -> None:
        task = asyncio.create_task(self._gone(edition))
        self._seeing_out.add(task)
        task.add_done_callback(self._seeing_out.discard)

    async def _see_nobody_out(self) -> None:
        for each in self._seeing_out:
            each.cancel()
        await asyncio.gather(*self._seeing_out, return_exceptions=True)

    async def _gone(self, edition: Edition) -> None:
        unfinished = await edition.generation.retired()
        await edition.close()
        self.editions.remove(edition)
        self._close_rows(edition)
        self._steer()
        self._introduce()
        _log.info("generation_ended", generation=edition.generation.number, unfinished=unfinished)

    def _close_rows(self, edition: Edition) -> None:
        """Unless another edition counts there, too."""
        rows = edition.rows
        if rows is not None and not any(each.rows is not None and each.rows.fd == rows.fd for each in self.editions):
            rows.close()

    def _steer(self) -> None:
        live = [each.places for each in self.editions if each.generation.retiring or each is not self.current]
        self.sockets.steer(Steering(key=self._keys.steering, current=self.current.places, live=live))

    def _siblings(self, place: int) -> list[int]:
        return [each for edition in self.editions for each in edition.places if each != place]

    def _introduce(self) -> None:
        for worker in self.processes():
            worker.tell("siblings", self._siblings(worker.place))
