# SPDX-License-Identifier: Apache-2.0
"""Which waiting requests run next, as one batch. Pure: no clock, no thread, no tensor.

The best of the waiting (class rank, then arrival) heads the next batch and decides when it goes; others that can run
beside it fill it up in the same order. So a batch never goes ahead of a better request, and a request waits for
company at most `max_wait_s`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Batcher", "Entry"]


@dataclass(slots=True, eq=False, kw_only=True)
class Entry:
    """One waiting request, as far as batching is concerned."""

    rows: int
    key: Hashable
    """Requests with equal keys can run as one batch."""
    rank: int
    """Its traffic class: 0 goes first."""
    arrival: float
    """Monotonic seconds."""
    deadline: float
    """Monotonic seconds."""

    @property
    def order(self) -> tuple[int, float]:
        """Who goes first."""
        return self.rank, self.arrival


E = TypeVar("E", bound=Entry)


class Batcher(Generic[E]):
    """The requests that wait for a slot.

    max_size: rows that make a batch full; a single request with more runs alone.
    max_wait_s: how long a request may wait for others to join it.
    """

    def __init__(self, *, max_size: int, max_wait_s: float) -> None:
        self._max_size = max_size
        self._max_wait_s = max_wait_s
        self._waiting: dict[E, None] = {}  # a set that keeps its order

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        rows = sum(entry.rows for entry in self._waiting)
        return f"<Batcher {len(self)} waiting, {rows} rows, max {self._max_size}>"

    def add(self, entry: E) -> None:
        """One more waits."""
        self._waiting[entry] = None

    def discard(self, entry: E) -> None:
        """It does not wait any more, if it did."""
        self._waiting.pop(entry, None)

    def take_expired(self, now: float) -> list[E]:
        """Those whose deadline has passed leave."""
        expired = [entry for entry in self._waiting if entry.deadline <= now]
        self._remove(expired)
        return expired

    def take_batch(self, now: float) -> list[E]:
        """The next batch leaves, best first; empty where none is due."""
        if not self._waiting:
            return []
        batch, full = self._next_batch()
        if not full and now < self._due(batch):
            return []
        self._remove(batch)
        return batch

    def due(self) -> float | None:
        """When take_batch gives a batch although nobody else comes; None where nobody waits."""
        return self._due(self._next_batch()[0]) if self._waiting else None

    def take_all(self) -> list[E]:
        """Everybody leaves."""
        everybody = list(self._waiting)
        self._waiting.clear()
        return everybody

    def _next_batch(self) -> tuple[list[E], bool]:
        """Who would go now, and whether waiting could not make it fuller."""
        head = min(self._waiting, key=lambda entry: entry.order)
        batch = [head]
        rows = head.rows
        if rows >= self._max_size:
            return batch, True
        others = (entry for entry in self._waiting if entry.key == head.key and entry is not head)
        for entry in sorted(others, key=lambda entry: entry.order):
            if rows + entry.rows > self._max_size:
                return batch, True
            batch.append(entry)
            rows += entry.rows
        return batch, rows == self._max_size

    def _due(self, batch: list[E]) -> float:
        return min(entry.arrival for entry in batch) + self._max_wait_s

    def _remove(self, entries: list[E]) -> None:
        for entry in entries:
            del self._waiting[entry]
