# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is at a pool's gate: bounded queues by class, strict rank, guaranteed shares and an ageing floor.

Among the classes that wait, a turn goes to the first of these that there is:

1. Floor: a class that was passed over for `MOST_PASSED_OVER` turns and holds less than that part of the places, or
   none; of several the one passed over most. So every class that waits has about 3 % of the turns or of the places,
   one place at least. Without the second condition a class of long requests would collect all places, one by one,
   in the turns of a class of short ones.
2. Share: in rank order, a class with a share that holds fewer places than share * places. Of the whole places in
   that product each is its own at once. The fraction that is left over cannot be held, so it is counted in turns:
   each turn given while the class waits earns it `share` of one, each turn it gets costs one. Two classes on one
   place, the lower with half of it, alternate; and with any number of places a class that waits and holds less than
   its share gets at least that share of the turns.
3. Rank: the highest class that waits.

Inside a class clients take turns by the backend time they used, and a client's most urgent request is its first
(qos/fairness.py). Strict rank can still keep something waiting for long, so every entry leaves at a known instant.
The queues decide and remember; they neither read a clock nor wake anybody.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from qos.fairness import Entry, FairQueue

__all__ = ["MOST_PASSED_OVER", "ClassBounds", "ClassQueues", "Entry"]

Item = TypeVar("Item")

MOST_PASSED_OVER = 32
"""Turns in a row that a class waits for others, unless it holds its part of the places meanwhile."""

# Dead entries that the expiry heap may hold beyond the living ones before it is rebuilt.
_SLACK = 64
# Ten times 0.1 is a little less than 1.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ClassBounds:
    """What one class may have of a gate."""

    share: float
    """Part of the places and turns, 0..1, that it gets before higher classes get more than theirs."""
    most_entries: int
    most_bytes: int


@dataclass(slots=True, eq=False)
class _Class(Generic[Item]):
    bounds: ClassBounds
    queue: FairQueue[Item] = field(default_factory=FairQueue)
    # OrderedDict, not dict: the newest is found without a walk over those that left.
    arrivals: OrderedDict[Entry[Item], None] = field(default_factory=OrderedDict)
    bytes: int = 0
    passed_over: int = 0
    credit: float = 0.0
    """Turns that its share has earned it and that it has not had."""

    def has_room(self, size: int) -> bool:
        return len(self.arrivals) < self.bounds.most_entries and self.bytes + size <= self.bounds.most_bytes

    def add(self, entry: Entry[Item], *, debt_s: float | None = None) -> None:
        self.queue.add(entry, debt_s=debt_s)
        self.arrivals[entry] = None
        self.bytes += entry.size

    def starves(self, held: int, places: int) -> bool:
        return self.passed_over >= MOST_PASSED_OVER and held < max(1, places // MOST_PASSED_OVER)

    def is_short_of_its_share(self, held: int, places: int) -> bool:
        share = self.bounds.share
        own = share * places + _ROUNDING
        return held + 1 <= own or (held + _ROUNDING < share * places and self.credit + share + _ROUNDING >= 1)


class ClassQueues(Generic[Item]):
    """What waits at one gate, by class. bounds: of each rank; max_entries and max_bytes: of all together."""

    def __init__(self, bounds: Sequence[ClassBounds], *, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self._waiting = 0
        self._classes: list[_Class[Item]] = [_Class(each) for each in bounds]
        self._expiries: list[tuple[float, int, Entry[Item]]] = []
        self._arrivals = count()

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        waiting = ((rank, len(each.arrivals)) for rank, each in enumerate(self._classes) if each.arrivals)
        depths = ", ".join(f"rank {rank}: {depth}" for rank, depth in waiting)
        return f"<ClassQueues {depths or 'empty'}, {self.bytes} bytes>"

    def depth(self, rank: int) -> int:
        """How many wait in this rank."""
        return len(self._classes[rank].arrivals) if rank < len(self._classes) else 0

    def bytes_of(self, rank: int) -> int:
        """Bytes that wait in this rank."""
        return self._classes[rank].bytes if rank < len(self._classes) else 0

    def entries(self) -> Iterator[Entry[Item]]:
        """Everything that waits, in serving order by rank alone and with turns of equal length."""
        for each in self._classes:
            yield from each.queue

    def offer(self, item: Item, *, rank: int, client: str, due: float, size: int, leaves: float) -> Entry[Item] | None:
        """Queue an item until `leaves`; None: the bounds are reached and nothing changed. rank: one of the bounds'."""
        its_class = self._classes[rank]
        if not (its_class.has_room(size) and self._has_room(size)):
            return None
        entry = Entry(
            item=item, rank=rank, client=client, due=due, size=size, leaves=leaves, arrival=next(self._arrivals)
        )
        its_class.add(entry)
        self._waiting += 1
        self.bytes += size
        heapq.heappush(self._expiries, (leaves, entry.arrival, entry))
        return entry

    def room_for(self, rank: int, size: int, client: str | None = None) -> list[Entry[Item]] | None:
        """Who would have to leave so that `size` bytes of this rank fit: the newest of the lowest class first, and
        lower classes only. []: it fits as it is; None: refuse it, its class is full or what is below is too little.

        client: whose it is. Then also of its own class the newest of the client that waits with the most, as long as
        that one keeps no less than this one gets: turns are worth nothing to who cannot even wait, because one client
        has filled the queue."""
        fits = self._classes[rank].has_room(size)
        displaced = self._room_below(rank, size) if fits else None
        if displaced is None and client is not None:
            displaced = self._room_beside(self._classes[rank], size, client)
        return displaced

    def _room_beside(self, its_class: _Class[Item], size: int, client: str) -> list[Entry[Item]] | None:
        bounds, waiting = its_class.bounds, len(its_class.arrivals)
        too_many = max(waiting + 1 - bounds.most_entries, self._waiting + 1 - self.max_entries)
        too_large = max(its_class.bytes + size - bounds.most_bytes, self.bytes + size - self.max_bytes)
        heaviest, count = its_class.queue.heaviest()
        may_go = count - its_class.queue.waiting_of(client) - 1
        displaced: list[Entry[Item]] = []
        for entry in (entry for entry in reversed(its_class.arrivals) if may_go > 0 and entry.client == heaviest):
            if too_many > 0 or entry.size > 0:
                displaced.append(entry)
                too_many, too_large = too_many - 1, too_large - entry.size
            if too_many <= 0 and too_large <= 0:
                return displaced
            if len(displaced) == may_go:
                break
        return None

    def _room_below(self, rank: int, size: int) -> list[Entry[Item]] | None:
        too_many, too_large = self._waiting + 1 - self.max_entries, self.bytes + size - self.max_bytes
        if too_many <= 0 and too_large <= 0:
            return []
        lower = self._classes[:rank:-1]
        if too_many > sum(len(each.arrivals) for each in lower) or too_large > sum(each.bytes for each in lower):
            return None
        displaced: list[Entry[Item]] = []
        for entry in (entry for each in lower for entry in reversed(each.arrivals)):
            if too_many <= 0 and too_large <= 0:
                break
            # An empty body makes no room where only bytes are short.
            if too_many > 0 or entry.size > 0:
                displaced.append(entry)
                too_many, too_large = too_many - 1, too_large - entry.size
        return displaced

    def first(self, in_flight: Sequence[int], places: int) -> Entry[Item] | None:
        """The entry to be served next, which stays until it is served or withdrawn; None: nothing waits.

        in_flight: places held by rank, a missing rank holds none. places: of the whole pool, free or not.
        """
        aged: _Class[Item] | None = None
        short: _Class[Item] | None = None
        highest: _Class[Item] | None = None
        for rank, each in enumerate(self._classes):
            if not each.arrivals:
                continue
            held = in_flight[rank] if rank < len(in_flight) else 0
            if each.starves(held, places) and (aged is None or each.passed_over > aged.passed_over):
                aged = each
            if short is None and each.bounds.share and each.is_short_of_its_share(held, places):
                short = each
            if highest is None:
                highest = each
        chosen = aged or short or highest
        return None if chosen is None else chosen.queue.first()

    def serve(self, entry: Entry[Item], cost_s: float) -> None:
        """Remove an entry because it gets a place: that is its class's turn, and its client is charged the estimate of
        its backend time, seconds. One that has left already stays gone, and it was nobody's turn."""
        if not entry.waiting:
            return
        its_class = self._classes[entry.rank]
        # Who is held up by others' turns must not save up more of them than others can have been ahead.
        most_credit = float(len(self._classes))
        for each in self._classes:
            if each.arrivals:
                each.passed_over += 1
                each.credit = min(each.credit + each.bounds.share, most_credit)
        its_class.passed_over = 0
        its_class.credit = max(0.0, its_class.credit - 1)
        its_class.queue.serve(entry, cost_s)
        self._left(entry)

    def settle(self, rank: int, client: str, difference_s: float) -> None:
        """Charge a client what its request took more than the estimate, seconds, or less; of one that never waited the
        whole backend time. Nothing happens for a rank that a reload has taken away."""
        if rank < len(self._classes):
            self._classes[rank].queue.settle(client, difference_s)

    def withdraw(self, entry: Entry[Item]) -> None:
        """Remove an entry that gave up; one that has left already stays gone."""
        if entry.waiting:
            self._classes[entry.rank].queue.remove(entry)
            self._left(entry)

    def resize(self, entry: Entry[Item], size: int) -> None:
        """A waiting item has grown. It keeps its place even past the bounds, which then hold for newcomers."""
        if entry.waiting:
            self._classes[entry.rank].bytes += size - entry.size
            self.bytes += size - entry.size
            entry.size = size

    def use_classes(self, bounds: Sequence[ClassBounds], rank_of: Callable[[Entry[Item]], int]) -> None:
        """The classes have changed. What waits goes to its new rank, past its bounds if need be, and keeps its order
        there: what its client owes goes with it. rank_of: one of the bounds'."""
        before, self._classes = self._classes, [_Class(each) for each in bounds]
        moved = [(entry, each.queue.debt_s(entry.client)) for each in before for entry in each.queue]
        for entry, _ in moved:
            entry.rank = rank_of(entry)
        for entry, debt_s in moved:
            self._classes[entry.rank].add(entry, debt_s=debt_s)
        for each in self._classes:
            each.arrivals = OrderedDict.fromkeys(sorted(each.arrivals, key=lambda entry: entry.arrival))

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

    def _has_room(self, size: int) -> bool:
        return self._waiting < self.max_entries and self.bytes + size <= self.max_bytes

    def _left(self, entry: Entry[Item]) -> None:
        its_class = self._classes[entry.rank]
        del its_class.arrivals[entry]
        its_class.bytes -= entry.size
        self._waiting -= 1
        self.bytes -= entry.size
        # Most entries are served long before they expire, and would fill the heap with the dead.
        if len(self._expiries) > 2 * self._waiting + _SLACK:
            self._expiries = [expiry for expiry in self._expiries if expiry[2].waiting]
            heapq.heapify(self._expiries)
