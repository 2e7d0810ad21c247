# SPDX-License-Identifier: Apache-2.0
"""One heap of timers for a worker: many keys, each with its next moment, and one clock alarm for all.

A connection's timer moves with every packet, nearly always later. Moving it later touches no heap: the old entry
stays, and is put where it belongs when it comes up to the top. Only moving it earlier pushes.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["TimerHeap"]

K = TypeVar("K", bound=Hashable)


class TimerHeap(Generic[K]):
    """Moments in monotonic seconds by key."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._entry: dict[K, float] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, when: float | None) -> None:
        """Give `key` its next moment; None takes it away."""
        if when is None:
            self._due.pop(key, None)
            return
        self._due[key] = when
        entry = self._entry.get(key)
        if entry is None or when < entry:
            self._push(key, when)

    def next(self) -> float | None:
        """The earliest moment, or None. Exact: a wake-up for a timer that has moved costs more than this."""
        while self._heap:
            when, _, key = self._heap[0]
            true = self._due.get(key)
            if when == true and self._entry[key] == when:
                return when
            heapq.heappop(self._heap)
            if self._entry.get(key) == when:
                del self._entry[key]
                if true is not None:
                    self._push(key, true)
        return None

    def pop_due(self, now: float) -> list[K]:
        """The keys whose moment has come; each is taken out."""
        due: list[K] = []
        while (when := self.next()) is not None and when <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._entry[key], self._due[key]
            due.append(key)
        return due

    def _push(self, key: K, when: float) -> None:
        self._sequence += 1  # equal moments must not compare keys
        self._entry[key] = when
        heapq.heappush(self._heap, (when, self._sequence, key))
