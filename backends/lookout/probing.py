# SPDX-License-Identifier: Apache-2.0
"""Asks endpoints whether they are there, besides what requests tell; what the answers mean is choosing/health.py's.

Each endpoint has a loop of its own, so one that hangs delays nobody's probe, and none is asked twice at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Protocol, runtime_checkable

import structlog

from backends.backend import Backend
from backends.endpoint import Endpoint
from backends.pool import Pool
from backends.pool_settings import ProbeSettings
from backends.remote.address import connects
from backends.remote.http_server import HttpServer
from inferlane.errors import Reason, Refused

__all__ = ["JITTER", "HttpBackend", "Probing", "ask", "pause_s"]

JITTER = 0.25
"""Probes come at 75 to 125 % of their interval, so that many gateways do not ask in step."""
FOLLOW_S = 1.0
"""How long an endpoint that was discovered may wait for its first probe to be planned."""
_log = structlog.get_logger("inferlane.probing")


@runtime_checkable
class HttpBackend(Protocol):
    """A backend whose server can be asked by other means than its protocol's."""

    @property
    def server(self) -> HttpServer:
        """Who is asked, with its connections and its key."""
        ...


def pause_s(every_s: float, rng: random.Random) -> float:
    """Seconds from one probe to the next."""
    return every_s * rng.uniform(1 - JITTER, 1 + JITTER)


async def ask(backend: Backend, settings: ProbeSettings, *, deadline: float) -> str | None:
    """One probe: None where it succeeded, else why not. deadline: monotonic seconds.

    Backends without an HTTP server (`onnx:`, `datagram:`) know one way to be asked, whatever kind is configured.
    """
    too_late = f"no answer within {settings.timeout:g} s"
    try:
        async with asyncio.timeout(deadline - monotonic()):
            if settings.kind == "tcp" and isinstance(backend, HttpBackend):
                origin = backend.server.origin
                await connects(origin.address or origin.host, origin.port, deadline=deadline)
            elif settings.kind == "http" and isinstance(backend, HttpBackend):
                answer = await backend.server.get(settings.path, deadline=deadline)
                if not 200 <= answer.status < 400:
                    return f"{settings.path} answered {answer.status}"
            else:
                await backend.probe(deadline=deadline)
    except Refused as refused:
        return too_late if refused.reason is Reason.DEADLINE else refused.detail
    except TimeoutError:
        return too_late
    except OSError as error:
        return error.strerror or str(error)
    return None


class Probing:
    """The probes of all pools that want some. `start` begins them, `close` ends them.

    pools: each with its settings, None for those that requests alone tell about.
    changed: told the pool's name when a probe has changed an endpoint's state.
    """

    def __init__(
        self,
        pools: Iterable[tuple[Pool, ProbeSettings | None]],
        *,
        changed: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pools = [(pool, settings) for pool, settings in pools if settings is not None]
        self._changed = changed
        self._clock = clock
        self._rng = rng or random.Random()
        self._sleep = sleep
        self._following: list[asyncio.Task[None]] = []
        self._counts: Counter[tuple[str, bool]] = Counter()

    def __repr__(self) -> str:
        return f"<Probing {[pool.name for pool, _ in self._pools]}, {self._counts.total()} probes>"

    @property
    def counts(self) -> Mapping[tuple[str, bool], int]:
        """Probes so far, by (pool, whether it succeeded)."""
        return self._counts

    def start(self) -> None:
        """Begin; every endpoint gets its first probe at once, for nothing is known of it."""
        self._following = [asyncio.create_task(self._follow(*each)) for each in self._pools]

    async def close(self) -> None:
        """End; no probe is in flight any more."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        self._following.clear()

    async def _follow(self, pool: Pool, settings: ProbeSettings) -> None:
        """Keep one loop for each endpoint that the pool has now."""
        loops: dict[Endpoint, asyncio.Task[None]] = {}
        try:
            while True:
                present = set(pool.endpoints)
                for gone in loops.keys() - present:
                    await _ended([loops.pop(gone)])
                for endpoint in present - loops.keys():
                    loops[endpoint] = asyncio.create_task(self._watch(pool, endpoint, settings))
                await self._sleep(FOLLOW_S)
        finally:
            await _ended(loops.values())

    async def _watch(self, pool: Pool, endpoint: Endpoint, settings: ProbeSettings) -> None:
        failed: str | None = None
        while True:
            before = failed
            try:
                failed = await ask(endpoint.backend, settings, deadline=monotonic() + settings.timeout)
                self._tell(pool, endpoint, before, failed)
            except Exception:  # noqa: BLE001  a bug told; ending here would leave the endpoint unwatched for ever
                _log.exception("probe_broke", pool=pool.name, endpoint=endpoint.name)
            await self._sleep(pause_s(settings.every, self._rng))

    def _tell(self, pool: Pool, endpoint: Endpoint, before: str | None, failed: str | None) -> None:
        now = self._clock()
        state = endpoint.state(now)
        self._counts[pool.name, failed is None] += 1
        if failed is None:
            endpoint.health.probe_succeeded(now)
        else:
            endpoint.health.probe_failed(now)
        if (before is None) is not (failed is None):
            where = {"pool": pool.name, "endpoint": endpoint.name}
            if failed is None:
                _log.info("probe_succeeds_again", **where)
            else:
                _log.warning("probe_failed", **where, detail=failed)
        if endpoint.state(now) != state:
            self._changed(pool.name)


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    waited = list(tasks)
    for task in waited:
        task.cancel()
    await asyncio.gather(*waited, return_exceptions=True)
