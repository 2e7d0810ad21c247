# SPDX-License-Identifier: Apache-2.0
"""Ending one walk from outside for a higher class: a cancellation that becomes a refusal, as a timeout does it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from inferlane.errors import Refused

__all__ = ["Evictable"]


class Evictable:
    """`with Evictable(refusal) as scope`: what runs in here ends with the refusal once `scope.evict()` was called."""

    def __init__(self, refusal: Refused) -> None:
        self._refusal = refusal
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._evicted = False

    def __repr__(self) -> str:
        return f"<Evictable {'evicted' if self._evicted else 'running' if self._task else 'over'}>"

    def evict(self) -> None:
        """End it. Without effect once it is over."""
        if self._task is not None and not self._evicted:
            self._evicted = True
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None  # a walk is a task's
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._evicted and task is not None:
            # More cancellations than ours: the client left as well, and nobody is there to be told.
            ours_alone = task.uncancel() <= self._cancelling
            if ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise self._refusal from None
