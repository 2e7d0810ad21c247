# SPDX-License-Identifier: Apache-2.0
"""The endpoints that serve one set of models: started together, picked one by one, closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.picker import Picker

__all__ = ["Pool"]


class Pool:
    """Endpoints, and the rule by which one of them is picked."""

    def __init__(self, name: str, endpoints: Sequence[Endpoint], pick: Picker) -> None:
        self.name = name
        self.endpoints = tuple(endpoints)
        self._pick = pick
        self._turn = 0

    def __repr__(self) -> str:
        free = sum(each.free for each in self.endpoints)
        in_flight = sum(each.in_flight for each in self.endpoints)
        return f"<Pool {self.name} {free} of {len(self.endpoints)} endpoints free, {in_flight} in flight>"

    @property
    def ready(self) -> bool:
        """Whether any endpoint could answer, now or once it has a place free."""
        return any(each.backend.ready for each in self.endpoints)

    def pick(self) -> Endpoint | None:
        """A free endpoint, which the caller takes at once; None when all places are taken."""
        index = self._pick(self.endpoints, self._turn)
        if index is None:
            return None
        self._turn = index + 1
        return self.endpoints[index]

    async def start(self) -> None:
        """Start all endpoints side by side. The first BackendError stops the others; `close` is due all the same."""
        try:
            async with asyncio.TaskGroup() as starting:
                for endpoint in self.endpoints:
                    starting.create_task(self._start(endpoint))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _start(self, endpoint: Endpoint) -> None:
        try:
            await endpoint.backend.start()
        except BackendError as error:
            raise BackendError(f"pool {self.name}, endpoint {endpoint.name}: {error}") from error

    async def close(self) -> None:
        """Close all endpoints, each whether or not another fails to."""
        results = await asyncio.gather(*(each.backend.close() for each in self.endpoints), return_exceptions=True)
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            raise ExceptionGroup(f"closing pool {self.name}", failures)
