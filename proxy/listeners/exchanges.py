# SPDX-License-Identifier: Apache-2.0
"""The walks in flight on behalf of one connection or socket: started here, cancelled here, counted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from proxy.arrival import Arrival, Responder, Walk

__all__ = ["Exchanges"]


class Exchanges:
    """Tasks by the key under which their door knows them (stream id, or peer and request id)."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(
        self, key: Hashable, arrival: Arrival, responder: Responder, *, ended: Callable[[], None] | None = None
    ) -> None:
        """Walk an arrival; `ended` is called when it is over, however it ended."""
        task = asyncio.get_running_loop().create_task(self._walk(arrival, responder))
        self._tasks[key] = task

        def done(_: asyncio.Task[None]) -> None:
            if self._tasks.get(key) is task:  # else a client has used the id of a request that it cancelled again
                del self._tasks[key]
            if ended is not None:
                ended()

        task.add_done_callback(done)

    def cancel(self, key: Hashable) -> None:
        """The client went away from one of them."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> None:
        """The client went away altogether."""
        for task in list(self._tasks.values()):
            task.cancel()
