# SPDX-License-Identifier: Apache-2.0
"""The gateway without sockets: the very functions that decide in the real one, acted on in simulated time.

Whose turn it is: `qos.scheduler.ClassQueues`. Who answers: `backends.pool.Pool` with its picker, predictions, limits
and health. What cannot be in time, who makes room, who is ended for others: `qos.admission`. What may be tried again:
`qos.budget` and `backends.asking.attempts`. Only the acting is here: proxy/walk/gate.py does the same with futures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from backends.endpoint import Endpoint
from backends.outcome import Ending, Outcome
from backends.pool import Pool
from benchmarks.sim.events import Events
from benchmarks.sim.servers import Server, Work
from inferlane.errors import Reason
from qos.admission import latest_start, to_evict, too_late
from qos.budget import Budget
from qos.scheduler import ClassBounds, ClassQueues, Entry
from qos.traffic_class import TrafficClass

__all__ = ["Asked", "Gateway", "Tally"]

RETRIES = 2
RETRY_SHARE = 0.2
MAX_ENTRIES = 4096


@dataclass(slots=True, eq=False, kw_only=True)
class Asked:
    """One request on its way."""

    traffic_class: TrafficClass
    client: str
    seconds: Sequence[float]
    """Its work; one value, or one for each server where they differ in speed."""
    arrived: float
    attempts: int = 0
    avoid: frozenset[str] = frozenset()
    over: bool = False


@dataclass(slots=True, eq=False)
class _Place:
    """One attempt in flight: what `to_evict` looks at."""

    asked: Asked
    endpoint: Endpoint
    rank: int
    since: float
    cost_s: float
    work: Work | None = None
    evicted: bool = False
    protected: bool = False
    """Given past a higher class that waited: by a share, or by the floor."""


@dataclass(slots=True)
class Tally:
    """What became of one class's requests that arrived once counting had begun."""

    offered: int = 0
    latencies: list[float] = field(default_factory=list)
    """Of the answered, seconds."""
    in_time: int = 0
    failed: int = 0
    refused: dict[Reason, int] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        """Good answers, late ones too."""
        return len(self.latencies)


class Gateway:
    """One pool, its gate, and servers by their endpoints' names.

    counted: what arrived from the one instant on and before the other, seconds, is in the tallies; answered: called
    with the latency of each good answer, counted or not.
    """

    def __init__(
        self,
        events: Events,
        pool: Pool,
        servers: Mapping[str, Server],
        classes: Sequence[TrafficClass],
        *,
        counted: tuple[float, float] = (0.0, inf),
        answered: Callable[[float], None] | None = None,
    ) -> None:
        self._events = events
        self.pool = pool
        self._servers = servers
        self._order = {name: place for place, name in enumerate(servers)}
        bounds = [ClassBounds(each.gate_share, each.most_waiting, each.most_waiting_bytes) for each in classes]
        self._queue: ClassQueues[Asked] = ClassQueues(bounds, max_entries=MAX_ENTRIES, max_bytes=1 << 40)
        self._in_flight = [0] * len(classes)
        self._places: dict[_Place, None] = {}
        self._budget = Budget(RETRY_SHARE)
        self._evicts = any(each.sheddable for each in classes)
        self._counted = counted
        self._told = answered
        self.tallies = {each.name: Tally() for each in classes}
        self.sent = dict.fromkeys(servers, 0)
        self.most_in_flight = dict.fromkeys(servers, 0)
        self.waits: dict[str, list[float]] = {each.name: [] for each in classes}

    def ask(self, asked: Asked) -> None:
        """A request has arrived."""
        if self._counts(asked):
            self.tallies[asked.traffic_class.name].offered += 1
        self._budget.earn()
        self._enter(asked)

    def _enter(self, asked: Asked) -> None:
        now = self._events.now
        if self._too_late(asked, self.pool.usual_s(asked.traffic_class.name, now), now):
            self._refuse(asked, Reason.TOO_LATE)
            return
        if len(self._queue):
            self._dispatch()
        if not len(self._queue):
            endpoint = self.pool.pick(now, waiting=1, avoid=asked.avoid)
            if endpoint is not None:
                self._send(asked, endpoint, cost_s=0.0)
                return
        if self._too_late(asked, self.pool.needed_s(asked.traffic_class.name, now), now):
            self._refuse(asked, Reason.TOO_LATE)
            return
        self._wait(asked, now)

    def _wait(self, asked: Asked, now: float) -> None:
        promise = asked.traffic_class
        deadline = asked.arrived + promise.deadline_s
        latest = latest_start(deadline, expected_s=self.pool.needed_s(promise.name, now), rtt_s=None)
        displaced = self._queue.room_for(promise.rank, 1)
        if displaced is None:
            self._refuse(asked, Reason.QUEUE_FULL)
            return
        for each in displaced:
            self._queue.withdraw(each)
            self._refuse(each.item, Reason.EVICTED)
        leaves = min(now + promise.queue_s, latest if latest > now else deadline)
        entry = self._queue.offer(asked, rank=promise.rank, client=asked.client, due=deadline, size=1, leaves=leaves)
        if entry is None:
            self._refuse(asked, Reason.QUEUE_FULL)
            return
        if leaves < 1e6:
            self._events.at(leaves, self._expire)
        if self._evicts:
            self._evict()

    def _too_late(self, asked: Asked, takes_s: float | None, now: float) -> bool:
        promise = asked.traffic_class
        latest = latest_start(asked.arrived + promise.deadline_s, expected_s=takes_s, rtt_s=None)
        return too_late(now, latest, class_in_flight=self._in_flight[promise.rank])

    def _evict(self) -> None:
        held = [place for place in self._places if place.asked.traffic_class.sheddable and not place.protected]
        ranks = range(len(self._in_flight))
        waiting = (rank for rank in ranks for _ in range(min(len(held), self._queue.depth(rank))))
        for place in to_evict(waiting, held):
            place.evicted = True
            self._end(place, Ending.CANCELLED)
            self._refuse(place.asked, Reason.EVICTED)

    def _expire(self) -> None:
        for entry in self._queue.expire(now=self._events.now):
            self._refuse(entry.item, Reason.QUEUE_TIMEOUT)
        self._dispatch()

    def _dispatch(self) -> None:
        now = self._events.now
        while len(self._queue):
            entry = self._queue.first(self._in_flight, self.pool.places(now))
            if entry is None:
                return
            if self._too_late(entry.item, self.pool.needed_s(entry.item.traffic_class.name, now), now):
                self._queue.withdraw(entry)
                self._refuse(entry.item, Reason.TOO_LATE)
                continue
            endpoint = self.pool.pick(now, waiting=len(self._queue), avoid=entry.item.avoid)
            if endpoint is None:
                return
            self._serve(entry, endpoint, now)

    def _serve(self, entry: Entry[Asked], endpoint: Endpoint, now: float) -> None:
        cost_s = self.pool.expected_s(entry.item.traffic_class.name, now) or 0.0
        self._queue.serve(entry, cost_s)
        place = self._send(entry.item, endpoint, cost_s=cost_s)
        place.protected = any(self._queue.depth(higher) for higher in range(entry.rank))

    def _send(self, asked: Asked, endpoint: Endpoint, *, cost_s: float) -> _Place:
        now = self._events.now
        endpoint.take(now)
        rank = asked.traffic_class.rank
        self._in_flight[rank] += 1
        asked.attempts += 1
        self.sent[endpoint.name] += 1
        self.most_in_flight[endpoint.name] = max(self.most_in_flight[endpoint.name], endpoint.in_flight)
        if asked.attempts == 1 and self._counts(asked):
            self.waits[asked.traffic_class.name].append(now - asked.arrived)
        place = _Place(asked, endpoint, rank, now, cost_s)
        self._places[place] = None
        seconds = asked.seconds
        work = seconds[self._order[endpoint.name]] if len(seconds) > 1 else seconds[0]
        place.work = self._servers[endpoint.name].begin(work, lambda: self._done(place))
        deadline = asked.arrived + asked.traffic_class.deadline_s
        if deadline < 1e6:
            self._events.at(deadline, lambda: self._timed_out(place))
        return place

    def _done(self, place: _Place) -> None:
        if place not in self._places:
            return
        failed = place.work is not None and place.work.failed
        self._end(place, Ending.FAILED if failed else Ending.ANSWERED)
        if failed:
            self._failed(place)
        else:
            self._answered(place.asked)

    def _timed_out(self, place: _Place) -> None:
        if place in self._places:
            self._end(place, Ending.TIMED_OUT)
            self._refuse(place.asked, Reason.DEADLINE)

    def _end(self, place: _Place, ending: Ending) -> None:
        """The place is free again, and everybody learns."""
        now = self._events.now
        del self._places[place]
        self._in_flight[place.rank] -= 1
        if ending is not Ending.ANSWERED and place.work is not None:
            self._servers[place.endpoint.name].cancel(place.work)
        held_s = now - place.since
        outcome = Outcome(ending=ending, latency_s=held_s, held_s=held_s)
        self.pool.finished(place.endpoint, outcome, place.asked.traffic_class.name, now)
        self._queue.settle(place.rank, place.asked.client, held_s - place.cost_s)
        if len(self._queue):
            self._events.at(now, self._dispatch)

    def _failed(self, place: _Place) -> None:
        asked = place.asked
        if asked.attempts <= RETRIES and self.pool.more_than_one and self._budget.spend():
            asked.avoid |= {place.endpoint.name}
            self._enter(asked)
            return
        if self._counts(asked):
            self.tallies[asked.traffic_class.name].failed += 1

    def _answered(self, asked: Asked) -> None:
        latency_s = self._events.now - asked.arrived
        if self._told is not None:
            self._told(latency_s)
        if not self._counts(asked):
            return
        tally = self.tallies[asked.traffic_class.name]
        tally.latencies.append(latency_s)
        tally.in_time += latency_s <= asked.traffic_class.deadline_s

    def _counts(self, asked: Asked) -> bool:
        return self._counted[0] <= asked.arrived < self._counted[1]

    def _refuse(self, asked: Asked, reason: Reason) -> None:
        if self._counts(asked):
            refused = self.tallies[asked.traffic_class.name].refused
            refused[reason] = refused.get(reason, 0) + 1
