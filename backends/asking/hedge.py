# SPDX-License-Identifier: Apache-2.0
"""Two copies of one request at two endpoints: the first good answer wins, and the other copy is cancelled.

It decides nothing but who has won; whether and when there is a second copy is `backends.asking.attempts`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from backends.asking.attempt import Copy
from backends.messages import Pieces, Reply
from backends.outcome import Ending
from inferlane.errors import Refused

__all__ = ["Race"]

_GOOD = (Ending.ANSWERED, Ending.BLAMELESS)
"""400 is an answer, too: the other endpoint would not say anything else."""
_log = structlog.get_logger("inferlane.attempts")


class Race:
    """`async with Race() as race`: whatever still runs at the end is cancelled, and its place left once it has ended.

    lost: told of each copy that did not win, once its place is free.
    """

    def __init__(self, lost: Callable[[Copy], None]) -> None:
        self._lost = lost
        self._running: dict[asyncio.Task[Reply], Copy] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Race of {len(self._running)} running>"

    async def __aenter__(self) -> Race:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task, copy in self._running.items():
            task.cancel()
            # Not awaited: the winner's reply must not wait for the loser to clean up.
            task.add_done_callback(partial(self._settle, copy))
        self._running.clear()

    def start(self, copy: Copy) -> None:
        """One more runs from now on."""
        self._running[asyncio.get_running_loop().create_task(copy.ask())] = copy

    async def over_within(self, seconds: float) -> bool:
        """Whether the first copy has ended, well or not, before so long."""
        done, _ = await asyncio.wait(self._running, timeout=seconds)
        return bool(done)

    async def winner(self) -> Copy:
        """The first copy with a good answer, else the last one to fail; its place is still held."""
        while True:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task, copy in list(self._running.items()):
                if not task.done():
                    continue
                del self._running[task]
                task.exception()  # looked at: it is in copy.result
                if not self._running or copy.outcome().ending in _GOOD:
                    return copy
                self._settle(copy, task)

    def _settle(self, copy: Copy, task: asyncio.Task[Reply]) -> None:
        """A copy that did not win has ended."""
        error = None if task.cancelled() else task.exception()
        copy.place.leave(copy.outcome())
        if isinstance(copy.result, Reply) and not isinstance(copy.result.body, bytes):
            closing = asyncio.get_running_loop().create_task(_close(copy.result.body))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        if error is not None and not isinstance(error, Refused):
            _log.error("hedge_failed", endpoint=copy.place.endpoint.name, exc_info=error)
        self._lost(copy)


async def _close(body: Pieces) -> None:
    await body.aclose()
