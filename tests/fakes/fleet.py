# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose servers a test switches on and off, for what watches them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backends.choosing.picker import PICKERS
from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.messages import Api
from backends.pool import Pool
from inferlane.errors import Reason, Refused
from qos.limit import FixedLimit
from tests.fakes.endpoints import IdleBackend

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 10.0


class WatchedBackend(IdleBackend):
    """Answers probes as the test says, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.well = True
        self.hangs = False
        self.starts_slowly = False
        self.broken: Exception | None = None
        self.probes = 0
        self.at_once = 0
        self.most_at_once = 0
        self.started = 0
        self.closed = 0

    async def start(self) -> None:
        self.started += 1
        if self.broken is not None:
            raise BackendError(str(self.broken))
        if self.starts_slowly:
            await asyncio.Event().wait()

    async def probe(self, *, deadline: float) -> None:
        self.probes += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self.hangs:
                await asyncio.Event().wait()
        finally:
            self.at_once -= 1
        if self.broken is not None:
            raise self.broken
        if not self.well:
            raise Refused(Reason.BACKEND_FAILED, "the backend is not well", status=503)

    async def close(self) -> None:
        self.closed += 1


def watched_endpoint(name: str, *, api: Api = Api.OIP, zone: str | None = None) -> tuple[Endpoint, WatchedBackend]:
    """An endpoint and what is behind it."""
    backend = WatchedBackend()
    backend.api = api  # type: ignore[misc]
    return Endpoint(name, backend, FixedLimit(4), zone=zone), backend


def watched_pool(*names: str, name: str = "digits") -> tuple[Pool, list[WatchedBackend]]:
    """A pool of such endpoints."""
    pairs = [watched_endpoint(each) for each in names]
    pool = Pool(name, [endpoint for endpoint, _ in pairs], PICKERS["round_robin"])
    return pool, [backend for _, backend in pairs]


async def until(happened: Callable[[], object]) -> None:
    """Poll, with a generous bound."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():
            await asyncio.sleep(0.001)
