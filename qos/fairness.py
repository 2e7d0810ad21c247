# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is inside one class: the client that has used least backend time, and of its requests the most urgent.

This is deficit round robin with surplus, with a quantum so small that its rounds need not be walked: a client's
`used` seconds grow with every turn (by an estimate, corrected when the real time is known), and the least used is
next. Ties go round. From a level start, and as long as two clients both wait, neither was charged more than the other
by more than one turn; over any stretch of that time by more than one turn of each. So a thousand requests of one client
wait behind one another, and not before everybody else's.

Who begins to wait starts level with the client served last, as in start-time fair queueing (Goyal, Vin and Cheng,
SIGCOMM 1996): idleness earns nothing. A debt outlives an empty queue, else sending one request at a time would wash
it off, but only up to `MOST_DEBT_TURNS`, and only of so many clients: an old burst is not punished for minutes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

__all__ = ["LEAST_TURN_S", "MOST_DEBT_TURNS", "MOST_REMEMBERED", "Entry", "FairQueue"]

Item = TypeVar("Item")

LEAST_TURN_S = 0.0001
"""A turn is charged at least this: else a client of unknown cost had all turns until its first reply is back."""
MOST_DEBT_TURNS = 8.0
"""A client that comes back is behind by at most so many mean turns of its class: a little, and still enough that a
client of requests far longer than the others' cannot shed the most of each by waiting with one at a time."""
MOST_REMEMBERED = 1024
"""Clients that do not wait but whose debt is known; the one charged longest ago goes first."""

_MEAN_OVER = 16
# Dead places that a heap may hold beyond the living ones before it is rebuilt.
_SLACK = 16


@dataclass(slots=True, eq=False, kw_only=True)
class Entry(Generic[Item]):
    """One place in the queue."""

    item: Item
    rank: int
    client: str
    due: float
    """Monotonic seconds; the earliest of its client is served first."""
    size: int
    """Bytes that count against the queue's bounds."""
    leaves: float
    """Monotonic seconds at which it stops waiting."""
    arrival: int
    """Counts up with every entry: the order among equals."""
    waiting: bool = True


@dataclass(slots=True, eq=False)
class _Client(Generic[Item]):
    name: str
    used: float
    """Backend seconds on the class's own scale."""
    waiting: int = 0
    by_due: list[tuple[float, int, Entry[Item]]] = field(default_factory=list)
    turn: int = -1
    """Which of its places in the turns holds; all others are dead."""


class FairQueue(Generic[Item]):
    """What waits in one class."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[Item]] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        # By how many of theirs wait. Steps are by one, so the most is found without a search.
        self._by_waiting: dict[int, dict[str, None]] = {}
        self._most_waiting = 0
        self._turns: list[tuple[float, int, _Client[Item]]] = []
        self._sequence = count()
        self._level = 0.0
        self._mean_turn_s = 0.0
        self._entries = 0

    def __len__(self) -> int:
        return self._entries

    def __iter__(self) -> Iterator[Entry[Item]]:
        """In serving order, if every turn took the class's mean time."""
        turns = [(client.used, client.turn, client) for client in self._clients.values() if client.waiting]
        heapq.heapify(turns)
        queues = {client.name: self._by_due(client) for _, _, client in turns}
        sequence = count(next(self._sequence))
        while turns:
            used, _, client = turns[0]
            queue = queues[client.name]
            yield queue.pop()
            if queue:
                turn_s = max(self._mean_turn_s, LEAST_TURN_S)
                heapq.heapreplace(turns, (used + turn_s, next(sequence), client))
            else:
                heapq.heappop(turns)

    def __repr__(self) -> str:
        clients = len(self._clients) - len(self._idle)
        return f"<FairQueue {self._entries} of {clients} clients, {len(self._idle)} more remembered>"

    def add(self, entry: Entry[Item], *, debt_s: float | None = None) -> None:
        """Let an entry wait. debt_s: what its client owes, of one that is not known here; negative: is owed."""
        client = self._client(entry.client)
        if debt_s is not None and not client.waiting:
            client.used = self._level + debt_s
        elif not client.waiting:
            client.used = self._within_bounds(client.used)
        self._counts(client, client.waiting + 1)
        self._entries += 1
        heapq.heappush(client.by_due, (entry.due, entry.arrival, entry))
        if client.waiting == 1:
            self._idle.pop(client.name, None)
            self._queue_up(client)

    def first(self) -> Entry[Item] | None:
        """The entry to be served next, which stays; None: nothing waits."""
        turns = self._turns
        while turns:
            _, turn, client = turns[0]
            if client.turn == turn:
                while not client.by_due[0][2].waiting:
                    heapq.heappop(client.by_due)
                return client.by_due[0][2]
            heapq.heappop(turns)
        return None

    def serve(self, entry: Entry[Item], cost_s: float) -> None:
        """Remove an entry that gets its turn, and charge its client the estimated backend seconds."""
        client = self._clients[entry.client]
        cost_s = max(cost_s, LEAST_TURN_S)
        if self.first() is not None:
            # Not simply the served one's: its place may have come out of turn.
            self._level = max(self._level, self._turns[0][0])
        self._mean_turn_s += (cost_s - self._mean_turn_s) / (_MEAN_OVER if self._mean_turn_s else 1)
        client.used += cost_s
        self.remove(entry)
        if client.waiting:
            self._queue_up(client)

    def settle(self, name: str, difference_s: float) -> None:
        """Correct what a client was charged, by real less estimated backend seconds."""
        client = self._client(name)
        if client.waiting:
            client.used += difference_s
            self._queue_up(client)
        else:
            # The bound holds when it comes back: by then the class may know better how long a turn is.
            client.used = max(self._level, client.used) + difference_s
            self._rest(client)

    def remove(self, entry: Entry[Item]) -> None:
        """Take out an entry that gave up, at no cost."""
        client = self._clients[entry.client]
        entry.waiting = False
        self._counts(client, client.waiting - 1)
        self._entries -= 1
        if not client.waiting:
            client.by_due.clear()
            client.turn = -1
            self._rest(client)
        elif len(client.by_due) > 2 * client.waiting + _SLACK:
            client.by_due = [place for place in client.by_due if place[2].waiting]
            heapq.heapify(client.by_due)

    @property
    def clients(self) -> int:
        """Of how many clients something waits."""
        return len(self._clients) - len(self._idle)

    def waiting_of(self, name: str) -> int:
        """How many requests of this client wait."""
        client = self._clients.get(name)
        return 0 if client is None else client.waiting

    def heaviest(self) -> tuple[str, int]:
        """The client of whom most wait, and how many that are."""
        most = self._by_waiting.get(self._most_waiting)
        return (next(iter(most)), self._most_waiting) if most else ("", 0)

    def debt_s(self, name: str) -> float:
        """Backend seconds that others who wait may use before this client is level with them; negative: it is owed."""
        client = self._clients.get(name)
        if client is None:
            return 0.0
        return (client.used if client.waiting else self._within_bounds(client.used)) - self._level

    def _counts(self, client: _Client[Item], waiting: int) -> None:
        alike = self._by_waiting.get(client.waiting)
        if alike is not None:
            del alike[client.name]
            if not alike:
                del self._by_waiting[client.waiting]
        client.waiting = waiting
        if waiting:
            self._by_waiting.setdefault(waiting, {})[client.name] = None
        if waiting > self._most_waiting or self._most_waiting not in self._by_waiting:
            self._most_waiting = waiting

    def _client(self, name: str) -> _Client[Item]:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client(name, self._level)
        return client

    def _within_bounds(self, used: float) -> float:
        return max(self._level, min(used, self._level + MOST_DEBT_TURNS * self._mean_turn_s))

    def _queue_up(self, client: _Client[Item]) -> None:
        """Its turn has changed."""
        client.turn = next(self._sequence)
        heapq.heappush(self._turns, (client.used, client.turn, client))
        if len(self._turns) > 2 * (len(self._clients) - len(self._idle)) + _SLACK:
            self._turns = [turn for turn in self._turns if turn[2].turn == turn[1]]
            heapq.heapify(self._turns)

    def _rest(self, client: _Client[Item]) -> None:
        """It does not wait; remembered as long as it owes something."""
        self._idle[client.name] = None
        self._idle.move_to_end(client.name)
        while self._idle:
            oldest = self._clients[next(iter(self._idle))]
            if len(self._idle) <= MOST_REMEMBERED and oldest.used > self._level:
                return
            del self._idle[oldest.name], self._clients[oldest.name]

    def _by_due(self, client: _Client[Item]) -> list[Entry[Item]]:
        """The latest first, to be popped from the end."""
        return [place[2] for place in sorted(client.by_due, reverse=True) if place[2].waiting]
