# SPDX-License-Identifier: Apache-2.0
"""What waits at one gate beside those of other workers: the same queues, announced, with turns and bounds in common.

Of the others only numbers are known. So who has to leave for a newcomer is looked for among one's own; what others
have waiting counts against the bounds, and is not displaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from backends.ledger.layout import RANKS
from backends.ledger.line import Line
from qos.scheduler import ClassBounds, ClassQueues, Entry

__all__ = ["SharedQueues"]

Item = TypeVar("Item")


class SharedQueues(Generic[Item]):
    """own: this worker's; since: when an item came, monotonic seconds; clock: the same."""

    def __init__(
        self,
        own: ClassQueues[Item],
        line: Line,
        bounds: Sequence[ClassBounds],
        *,
        since: Callable[[Item], float],
        clock: Callable[[], float],
    ) -> None:
        self._own = own
        self._line = line
        self._ranks = _tell(line, bounds)
        self._since = since
        self._clock = clock

    def __len__(self) -> int:
        return len(self._own)

    def __repr__(self) -> str:
        return f"<SharedQueues {self._own!r}, {self._line!r}>"

    @property
    def bytes(self) -> int:
        """That wait here."""
        return self._own.bytes

    def depth(self, rank: int) -> int:
        """How many wait in this rank, here."""
        return self._own.depth(rank)

    def first(self, in_flight: Sequence[int], places: int) -> Entry[Item] | None:
        """The entry to be served next, if it is this worker's turn; else the worker whose turn it is has been told.
        in_flight: of this worker, which does not matter here."""
        rank = self._line.my_turn(self._clock(), places)
        return None if rank is None else self._own.first_of(rank)

    def offer(self, item: Item, *, rank: int, client: str, due: float, size: int, leaves: float) -> Entry[Item] | None:
        """See ClassQueues. With the line held since `room_for`."""
        self._count_others()
        entry = self._own.offer(item, rank=rank, client=client, due=due, size=size, leaves=leaves)
        if entry is not None:
            self._announce(rank)
        return entry

    def room_for(self, rank: int, size: int, client: str | None = None) -> list[Entry[Item]] | None:
        """See ClassQueues."""
        self._count_others()
        return self._own.room_for(rank, size, client)

    def serve(self, entry: Entry[Item], cost_s: float) -> None:
        """See ClassQueues."""
        if entry.waiting:
            self._line.served(entry.rank)
            self._own.serve(entry, cost_s)
            self._announce(entry.rank)

    def settle(self, rank: int, client: str, difference_s: float) -> None:
        """See ClassQueues."""
        self._own.settle(rank, client, difference_s)

    def withdraw(self, entry: Entry[Item]) -> None:
        """See ClassQueues."""
        if entry.waiting:
            self._own.withdraw(entry)
            self._announce(entry.rank)

    def resize(self, entry: Entry[Item], size: int) -> None:
        """See ClassQueues."""
        if entry.waiting and entry.size != size:
            self._own.resize(entry, size)
            self._announce(entry.rank)

    def expire(self, *, now: float) -> list[Entry[Item]]:
        """See ClassQueues."""
        expired = self._own.expire(now=now)
        for rank in {entry.rank for entry in expired}:
            self._announce(rank)
        return expired

    def next_expiry(self) -> float | None:
        """See ClassQueues."""
        return self._own.next_expiry()

    def use_classes(self, bounds: Sequence[ClassBounds], rank_of: Callable[[Entry[Item]], int]) -> None:
        """See ClassQueues. The gate tells the line before what it holds by the new ranks."""
        self._ranks = _tell(self._line, bounds)
        self._own.use_classes(bounds, rank_of)
        for rank in range(self._ranks):
            self._announce(rank)

    def _announce(self, rank: int) -> None:
        own = self._own
        eldest = own.eldest_of(rank)
        since = 0.0 if eldest is None else self._since(eldest.item)
        self._line.announce(rank, own.depth(rank), own.bytes_of(rank), own.clients_of(rank), since)

    def _count_others(self) -> None:
        self._own.others_have(self._line.elsewhere(self._ranks))


def _tell(line: Line, bounds: Sequence[ClassBounds]) -> int:
    """How many ranks there are."""
    if len(bounds) > RANKS:
        raise ValueError(f"{len(bounds)} classes, and several workers can share the turns of {RANKS}")
    line.shares = [each.share for each in bounds]
    return len(bounds)
