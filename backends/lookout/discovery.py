# SPDX-License-Identifier: Apache-2.0
"""Keeps pools at the endpoints that names and watched files tell: looks again and again, and changes what changed.

What cannot be looked up or read keeps what was there before. Endpoints that stay keep all that was learned of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic

import structlog

from backends.build import endpoint_of
from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.lookout.membership import Member, Membership, Name, first_family
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.remote.address import resolve
from backends.settings import EndpointSettings

__all__ = ["Discovery", "PoolDiscovery", "ReadEndpoints"]

ANSWER_S = 5.0
"""Longest wait for a name server; resolv.conf(5) tries the next one after as long."""
START_S = 6.0
"""Longest wait of a gateway's start for the first answers: without them a pool starts with what it has."""
RETRY_S = 5.0
"""Until an endpoint that could not be started, or a round that broke, is tried again."""
JITTER = 0.1
MOST_TROUBLES = 1000
"""Remembered as told; members that never started may come and go for ever."""
_log = structlog.get_logger("inferlane.discovery")

ReadEndpoints = Callable[[Path, PoolSettings], Sequence[EndpointSettings]]
"""A file's endpoints for a pool, verified like the config's. Raises BackendError that names file, line and remedy."""


class PoolDiscovery:
    """One pool's endpoints, as they come and go. `look` does what is due."""

    def __init__(self, pool: Pool, settings: PoolSettings, *, read: ReadEndpoints, rng: random.Random) -> None:
        self.pool = pool
        self.failures: Counter[str] = Counter()
        """Look-ups and readings that told nothing, by source: name, file, start."""
        self._settings = settings
        self._known = Membership(settings.endpoints)
        self._made = dict(zip(self._known.members(), pool.endpoints, strict=True))
        self._read = read
        self._rng = rng
        self._due: dict[Name | Path, float] = {}
        self._seen: tuple[int, int, int] | None = None
        self._trouble: dict[object, str] = {}
        """What was said already, by what it is about: a name server that is down is one line, not one a second."""

    def __repr__(self) -> str:
        return f"<PoolDiscovery {self.pool.name}: {len(self._made)} endpoints, {len(self._trouble)} troubles>"

    async def look(self, now: float) -> float:
        """Read and look up what is due, change the pool where that tells something new; when to come again."""
        watched = self._settings.endpoints_from
        if watched is not None and self._due.get(watched.file, now) <= now:
            self._due[watched.file] = now + self._spread(watched.every)
            await self._look_at(watched.file)
        names = self._known.names()
        asked = [name for name in names if self._due.get(name, now) <= now]
        await asyncio.gather(*(self._look_up(name) for name in asked))
        self._due |= {name: now + self._spread(names[name]) for name in asked}
        self._due = {key: due for key, due in self._due.items() if key in names or isinstance(key, Path)}
        complete = await self._change()
        return min([*self._due.values(), *([] if complete else [now + RETRY_S])], default=now + RETRY_S)

    async def _look_at(self, file: Path) -> None:
        try:
            before = await asyncio.to_thread(_stamp, file)
            if before == self._seen:
                return
            found = await asyncio.to_thread(self._read, file, self._settings)
            if await asyncio.to_thread(_stamp, file) != before:
                return  # it is being written; the next look sees all of it
        except OSError as error:
            self._failed("file", file, f"{file}: {error.strerror or error}")
        except BackendError as error:
            self._seen = before  # it stays as wrong as it is
            self._failed("file", file, str(error))
        else:
            self._seen, self._known.filed = before, found
            self._well(file)

    async def _look_up(self, name: Name) -> None:
        host, port = name
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await resolve(host, port, socket.SOCK_STREAM)
        except TimeoutError:
            self._failed("name", name, f"no answer about {host} within {ANSWER_S:g} s")
        except OSError as error:
            self._failed("name", name, f"{host} cannot be resolved: {error.strerror or error}")
        else:
            if found:
                self._known.addresses[name] = first_family(found)
                self._well(name)
            else:
                self._failed("name", name, f"{host} resolves to nothing")

    async def _change(self) -> bool:
        """Bring the pool to what is known; whether that is done."""
        wanted = self._known.members()
        if wanted == list(self._made):
            return True
        made: dict[Member, Endpoint] = {}
        try:
            for member in wanted:
                endpoint = self._made.get(member) or await self._new(member, made, wanted)
                if endpoint is not None:
                    made[member] = endpoint
        except BaseException:  # cancelled among others: the pool never gets those that were started, nor closes them
            new = [each for member, each in made.items() if member not in self._made]
            await asyncio.gather(*(each.backend.close() for each in new), return_exceptions=True)
            raise
        if list(made) != list(self._made):
            joined = [each.name for member, each in made.items() if member not in self._made]
            left = [each.name for member, each in self._made.items() if member not in made]
            self.pool.replace(list(made.values()))
            self._made = made
            _log.info("endpoints_changed", pool=self.pool.name, joined=joined, left=left, endpoints=len(made))
        return len(made) == len(wanted)

    async def _new(
        self, member: Member, made: Mapping[Member, Endpoint], wanted: Collection[Member]
    ) -> Endpoint | None:
        # One that leaves gives its name to the one that comes in its place, so that metrics and admins know it again.
        staying = (each for known, each in self._made.items() if known in wanted)
        taken = {each.name for each in (*staying, *made.values())}
        try:
            endpoint = endpoint_of(member.settings, taken, address=member.address)
            first = next(iter(made.values()), endpoint)
            if endpoint.backend.api is not first.backend.api:
                raise BackendError(
                    f"{endpoint.name} and {first.name} have different APIs; give them pools of their own"
                )
            await endpoint.backend.start()
        except BackendError as error:
            self._failed("start", member, str(error))
            return None
        self._well(member)
        return endpoint

    def _failed(self, source: str, about: object, detail: str) -> None:
        self.failures[source] += 1
        if self._trouble.get(about) != detail:
            self._trouble[about] = detail
            self._trouble = dict(list(self._trouble.items())[-MOST_TROUBLES:])
            _log.warning("discovery_failed", pool=self.pool.name, detail=f"{detail}; {_STAYS}")

    def _well(self, about: object) -> None:
        if self._trouble.pop(about, None) is not None:
            _log.info("discovery_works_again", pool=self.pool.name)

    def _spread(self, every_s: float) -> float:
        return every_s * self._rng.uniform(1 - JITTER, 1 + JITTER)


_STAYS = "the pool keeps the endpoints it has"


def _stamp(file: Path) -> tuple[int, int, int]:
    """Changes with the file's content, and when another takes its name."""
    told = os.stat(file)
    return told.st_mtime_ns, told.st_size, told.st_ino


class Discovery:
    """All pools with names to look up or a file to watch. `start` begins, `close` ends.

    read: see ReadEndpoints; changed: told a pool's name when its endpoints are others.
    """

    def __init__(
        self,
        pools: Iterable[tuple[Pool, PoolSettings]],
        *,
        read: ReadEndpoints,
        changed: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        rng = random.Random()
        self._pools = [
            PoolDiscovery(pool, settings, read=read, rng=rng)
            for pool, settings in pools
            if settings.endpoints_from is not None or Membership(settings.endpoints).names()
        ]
        self._changed = changed
        self._clock = clock
        self._sleep = sleep
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Discovery {self._pools!r}>"

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """Look-ups and readings that told nothing, by (pool, source); sources: name, file, start."""
        return {(each.pool.name, source): count for each in self._pools for source, count in each.failures.items()}

    async def start(self) -> None:
        """Look once at everything, START_S at the longest; then go on in the background. Raises nothing."""
        firsts = [asyncio.Event() for _ in self._pools]
        self._tasks = [asyncio.create_task(self._go_on(*each)) for each in zip(self._pools, firsts, strict=True)]
        waiting = [asyncio.ensure_future(each.wait()) for each in firsts]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=START_S)
            for each in late:
                each.cancel()

    async def close(self) -> None:
        """End. Endpoints are the pools' to close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _go_on(self, pool: PoolDiscovery, first: asyncio.Event) -> None:
        while True:
            now = self._clock()
            try:
                before = pool.pool.endpoints
                due = await pool.look(now)
                if pool.pool.endpoints is not before:
                    self._changed(pool.pool.name)
            except Exception:  # noqa: BLE001  whatever broke this round, the next may do
                _log.exception("discovery_broke", pool=pool.pool.name)
                due = now + RETRY_S
            first.set()
            await self._sleep(max(0.0, due - self._clock()))
