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

__all__ = ["MOST_PASSED_OVER", "ClassBounds", "ClassQueues", "Entry", "Turns", "next_rank", "took_turn"]

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
class Turns:
    """What one class's turns were so far."""

    share: float
    passed_over: int = 0
    credit: float = 0.0
    """Turns that its share has earned it and that it has not had."""

    def starves(self, held: int, places: int) -> bool:
        """Whether the floor gives it the next turn."""
        return self.passed_over >= MOST_PASSED_OVER and held < max(1, places // MOST_PASSED_OVER)

    def is_short_of_its_share(self, held: int, places: int) -> bool:
        """Whether its share does."""
        own = self.share * places + _ROUNDING
        return held + 1 <= own or (held + _ROUNDING < self.share * places and self.credit + self.share + _ROUNDING >= 1)

    def taken_alone(self, classes: int) -> None:
        """It had a turn while no other class waited: `took_turn` for the usual case."""
        self.passed_over = 0
        self.credit = max(0.0, min(self.credit + self.share, float(classes)) - 1)


def next_rank(turns: Sequence[Turns], waits: Sequence[bool], held: Sequence[int], places: int) -> int | None:
    """The class whose turn it is; None: nobody waits. All by rank; a rank missing in `held` holds none."""
    aged: int | None = None
    short: int | None = None
    highest: int | None = None
    for rank, each in enumerate(turns):
        if not waits[rank]:
            continue
        holds = held[rank] if rank < len(held) else 0
        if each.starves(holds, places) and (aged is None or each.passed_over > turns[aged].passed_over):
            aged = rank
        if short is None and each.share and each.is_short_of_its_share(holds, places):
            short = rank
        if highest is None:
            highest = rank
    if aged is not None:
        return aged
    return highest if short is None else short


def took_turn(turns: Sequence[Turns], waits: Sequence[bool], rank: int) -> None:
    """This class had its turn, and all others that wait were passed over."""
    # Who is held up by others' turns must not save up more of them than others can have been ahead.
    most_credit = float(len(turns))
    for each, waiting in zip(turns, waits, strict=True):
        if waiting:
            each.passed_over += 1
            each.credit = min(each.credit + each.share, most_credit)
    turns[rank].passed_over = 0
    turns[rank].credit = max(0.0, turns[rank].credit - 1)


@dataclass(slots=True, eq=False)
class _Class(Generic[Item]):
    bounds: ClassBounds
    turns: Turns
    queue: FairQueue[Item] = field(default_factory=FairQueue)
    # OrderedDict, not dict: the newest is found without a walk over those that left.
    arrivals: OrderedDict[Entry[Item], None] = field(default_factory=OrderedDict)
    bytes: int = 0
    entries_elsewhere: int = 0
    bytes_elsewhere: int = 0

    def has_room(self, size: int) -> bool:
        return (
            len(self.arrivals) + self.entries_elsewhere < self.bounds.most_entries
            and self.bytes + self.bytes_elsewhere + size <= self.bounds.most_bytes
        )

    def add(self, entry: Entry[Item], *, debt_s: float | None = None) -> None:
        self.queue.add(entry, debt_s=debt_s)
        self.arrivals[entry] = None
        self.bytes += entry.size


class ClassQueues(Generic[Item]):
    """What waits at one gate, by class. bounds: of each rank; max_entries and max_bytes: of all together."""

    def __init__(self, bounds: Sequence[ClassBounds], *, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.bytes = 0
        self._waiting = 0
        self._newest_rank = 0
        """Of the entry that came last. Mostly all that waits is of one class, and this is it."""
        self._entries_elsewhere = self._bytes_elsewhere = 0
        self._classes: list[_Class[Item]] = _classes(bounds)
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
        self._newest_rank = rank
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
        bounds, waiting = its_class.bounds, len(its_class.arrivals) + its_class.entries_elsewhere
        held = its_class.bytes + its_class.bytes_elsewhere
        too_many, too_large = self._too_much(size)
        too_many, too_large = (
            max(too_many, waiting + 1 - bounds.most_entries),
            max(too_large, held + size - bounds.most_bytes),
        )
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
        too_many, too_large = self._too_much(size)
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
        newest = self._classes[self._newest_rank]
        if self._waiting and len(newest.arrivals) == self._waiting:
            return newest.queue.first()  # no other class waits
        rank = next_rank(self._turns(), self._waits(), in_flight, places)
        return None if rank is None else self._classes[rank].queue.first()

    def first_of(self, rank: int) -> Entry[Item] | None:
        """The entry of this rank to be served next, whosever turn it is; None: none waits."""
        return self._classes[rank].queue.first() if rank < len(self._classes) else None

    def eldest_of(self, rank: int) -> Entry[Item] | None:
        """The entry of this rank that came first of those that wait."""
        return next(iter(self._classes[rank].arrivals), None) if rank < len(self._classes) else None

    def clients_of(self, rank: int) -> int:
        """Of how many clients requests wait in this rank."""
        return self._classes[rank].queue.clients if rank < len(self._classes) else 0

    def others_have(self, waiting: Sequence[tuple[int, int]]) -> None:
        """What other gates have waiting that the bounds are shared with: entries and bytes, by rank."""
        for each, (entries, size) in zip(self._classes, waiting, strict=True):
            each.entries_elsewhere, each.bytes_elsewhere = entries, size
        self._entries_elsewhere = sum(entries for entries, _ in waiting)
        self._bytes_elsewhere = sum(size for _, size in waiting)

    def serve(self, entry: Entry[Item], cost_s: float) -> None:
        """Remove an entry because it gets a place: that is its class's turn, and its client is charged the estimate of
        its backend time, seconds. One that has left already stays gone, and it was nobody's turn."""
        if not entry.waiting:
            return
        its_class = self._classes[entry.rank]
        if len(its_class.arrivals) == self._waiting:
            its_class.turns.taken_alone(len(self._classes))
        else:
            took_turn(self._turns(), self._waits(), entry.rank)
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
        before, self._classes = self._classes, _classes(bounds)
        self._newest_rank = 0
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
        too_many, too_large = self._too_much(size)
        return too_many <= 0 and too_large <= 0

    def _too_much(self, size: int) -> tuple[int, int]:
        """By how many entries and bytes the bounds of all classes would be passed with one more of this size."""
        entries, held = self._waiting + self._entries_elsewhere, self.bytes + self._bytes_elsewhere
        return entries + 1 - self.max_entries, held + size - self.max_bytes

    def _turns(self) -> list[Turns]:
        return [each.turns for each in self._classes]

    def _waits(self) -> list[bool]:
        return [bool(each.arrivals) for each in self._classes]

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


def _classes(bounds: Sequence[ClassBounds]) -> list[_Class[Item]]:
    return [_Class(each, Turns(each.share)) for each in bounds]
