# SPDX-License-Identifier: Apache-2.0
"""Who is served next: one bounded queue per rank, the lowest rank first, first come first served inside a rank.

Strict rank starves: while a lower rank waits, a higher one gets nothing. Every entry therefore leaves at a
known instant. The queue decides and remembers; it neither reads a clock nor wakes anybody.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

__all__ = ["Entry", "RankedQueue"]

Item = TypeVar("Item")

# Dead entries that the expiry heap may hold beyond the living ones before it is rebuilt.
_SLACK = 64


@dataclass(slots=True, eq=False, kw_only=True)
class Entry(Generic[Item]):
    """One place in the queue."""

    item: Item
    rank: int
    size: int
    """Bytes that count against the queue's bound."""
    leaves: float
    """Monotonic seconds at which it stops waiting."""
    waiting: bool = True


class RankedQueue(Generic[Item]):
    """What waits, in the order in which it will be served."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self._waiting = 0
        # OrderedDict, not deque: an entry that leaves from the middle costs no search.
        self._ranks: list[OrderedDict[Entry[Item], None]] = []
        self._expiries: list[tuple[float, int, Entry[Item]]] = []
        self._sequence = count()

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        depths = ", ".join(f"rank {rank}: {len(queue)}" for rank, queue in enumerate(self._ranks) if queue)
        return f"<RankedQueue {depths or 'empty'}, {self.bytes} bytes>"

    def depth(self, rank: int) -> int:
        """How many wait in this rank."""
        return len(self._ranks[rank]) if rank < len(self._ranks) else 0

    def offer(self, item: Item, *, rank: int, size: int, leaves: float) -> Entry[Item] | None:
        """Queue an item until `leaves`; None: the bounds are reached and nothing changed."""
        if self._waiting >= self.max_entries or self.bytes + size > self.max_bytes:
            return None
        entry = Entry(item=item, rank=rank, size=size, leaves=leaves)
        self._of_rank(rank)[entry] = None
        self._waiting += 1
        self.bytes += size
        heapq.heappush(self._expiries, (leaves, next(self._sequence), entry))
        return entry

    def first(self) -> Entry[Item] | None:
        """The entry to be served next, which stays until it is withdrawn; None: nothing waits."""
        for queue in self._ranks:
            if queue:
                return next(iter(queue))
        return None

    def withdraw(self, entry: Entry[Item]) -> None:
        """Remove an entry, to serve it or because it gave up; one that has left already stays gone."""
        if not entry.waiting:
            return
        entry.waiting = False
        del self._ranks[entry.rank][entry]
        self._waiting -= 1
        self.bytes -= entry.size
        # Most entries are served long before they expire, and would fill the heap with the dead.
        if len(self._expiries) > 2 * self._waiting + _SLACK:
            self._expiries = [expiry for expiry in self._expiries if expiry[2].waiting]
            heapq.heapify(self._expiries)

    def resize(self, entry: Entry[Item], size: int) -> None:
        """A waiting item has grown. It keeps its place even past the bound, which then holds for newcomers."""
        if entry.waiting:
            self.bytes += size - entry.size
            entry.size = size

    def rank_again(self, rank_of: Callable[[Entry[Item]], int]) -> None:
        """The ranks have changed: everything that waits goes behind what was served before it until now."""
        before = [entry for queue in self._ranks for entry in queue]
        self._ranks = []
        for entry in before:
            entry.rank = rank_of(entry)
            self._of_rank(entry.rank)[entry] = None

    def expire(self, *, now: float) -> list[Entry[Item]]:
        """Remove and return what stops waiting at `now` or earlier, in the order of the instants."""
        expired = []
        while (leaves := self.next_expiry()) is not None and leaves <= now:
            entry = heapq.heappop(self._expiries)[2]
            self.withdraw(entry)
            expired.append(entry)
        return expired

    def next_expiry(self) -> float | None:
        """The instant at which the next entry stops waiting."""
        while self._expiries and not self._expiries[0][2].waiting:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def _of_rank(self, rank: int) -> OrderedDict[Entry[Item], None]:
        while len(self._ranks) <= rank:
            self._ranks.append(OrderedDict())
        return self._ranks[rank]
