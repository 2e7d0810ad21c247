# SPDX-License-Identifier: Apache-2.0
"""Late binding: a request waits here, by class, until an endpoint of its pool has a place, and no longer than promised.

Whose turn it is, is the queues' to decide (qos/scheduler.py), who may still wait qos/admission.py's, and which endpoint
the pool's; the gate only keeps them, the waiting coroutines and the places given out together.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from backends.body import Body
from backends.endpoint import Endpoint
from backends.messages import Request
from backends.outcome import Outcome
from backends.pool import Pool
from inferlane.errors import Refused
from proxy.walk import refusals
from qos.admission import latest_start, retry_after_s, to_evict, too_late
from qos.scheduler import ClassBounds, ClassQueues, Entry
from qos.traffic_class import ClassTable, TrafficClass

__all__ = ["Gate", "Place"]

MAX_REQUESTS = 4096
"""Of all classes together; each class has a bound of its own."""
MAX_BYTES = 256 << 20

# While somebody waits, the pool is asked again this often: a probe, an admin, a grown limit or a slower zone may have
# made a place that no request's end tells about.
_LOOK_AGAIN_S = 0.1


@dataclass(slots=True, eq=False)
class _Waiter:
    request: Request
    place: asyncio.Future[Place]
    avoid: frozenset[str]
    latest: float
    """The instant after which it would be answered too late."""
    since: float


class Place:
    """One of an endpoint's places, given to one request; `leave` gives it back, whatever happened."""

    __slots__ = ("_cost_s", "_gate", "_left", "endpoint", "evicted", "protected", "rank", "request")

    def __init__(self, gate: Gate, endpoint: Endpoint, request: Request, rank: int, cost_s: float) -> None:
        self._gate = gate
        self._cost_s = cost_s
        self._left = False
        self.endpoint = endpoint
        self.request = request
        self.rank = rank
        self.evicted = False
        self.protected = False
        """It was its class's turn though a higher one waited: taking it back would take the turn back."""

    def __repr__(self) -> str:
        return f"<Place at {self.endpoint.name}, rank {self.rank}{', left' if self._left else ''}>"

    def leave(self, outcome: Outcome) -> None:
        """The attempt is over; the next in order gets the place."""
        if self._left:
            raise RuntimeError(f"{self!r} was left twice")
        self._left = True
        self._gate.left(self, outcome, self._cost_s)


class Gate:
    """The places of one pool, who has them, and who waits for them."""

    def __init__(
        self,
        pool: Pool,
        classes: ClassTable,
        *,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.evicted: Counter[str] = Counter()
        """By class: work ended, or waiting requests displaced, for a higher class."""
        self._classes = classes
        self._queues: ClassQueues[_Waiter] = ClassQueues(
            _bounds(classes), max_entries=max_requests, max_bytes=max_bytes
        )
        self._in_flight = [0] * len(classes)
        self._held: set[Place] = set()
        self._sheddable: OrderedDict[Place, None] = OrderedDict()
        # Bodies of unknown length still arriving: counted again whenever somebody new wants to wait.
        self._growing: set[Entry[_Waiter]] = set()
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = 0.0

    def __repr__(self) -> str:
        in_flight = sum(self._in_flight)
        return (
            f"<Gate {self.pool.name}: {in_flight} in flight, {len(self._queues)} waiting, {self._queues.bytes} bytes>"
        )

    def depth(self, traffic_class: TrafficClass) -> int:
        """How many requests of this class wait."""
        return self._queues.depth(traffic_class.rank)

    def in_flight(self, traffic_class: TrafficClass) -> int:
        """How many places this class has."""
        rank = traffic_class.rank
        return self._in_flight[rank] if rank < len(self._in_flight) else 0

    def use_classes(self, classes: ClassTable) -> None:
        """The classes have changed. Who waits or is served keeps what was promised, but has its turn by the new order;
        one whose class is no more keeps its rank as far as there is one."""
        self._classes = classes
        self._in_flight = [0] * len(classes)
        for place in self._held:
            place.rank = self._rank(place.request)
            self._in_flight[place.rank] += 1
        self._queues.use_classes(_bounds(classes), lambda entry: self._rank(entry.item.request))

    async def enter(self, request: Request, *, avoid: frozenset[str] = frozenset()) -> Place:
        """Wait for a place and take it; whoever got one gives it back with `leave`.

        avoid: names of endpoints that others go before. Raises Refused: NO_ENDPOINT, TOO_LATE, QUEUE_FULL, EVICTED,
        QUEUE_TIMEOUT or DEADLINE.
        """
        now, rank = self._clock(), self._rank(request)
        self._check_in_time(request, rank, now, self.pool.usual_s(request.traffic_class.name, now))
        if self._queues:
            # An endpoint may have become ready since; what it has to give is first theirs who wait.
            self._dispatch(now)
        if not self._queues:
            endpoint = self.pool.pick(now, waiting=1, avoid=avoid)
            if endpoint is not None:
                return self._give(endpoint, request, rank, now)
            if not self.pool.ready:
                raise refusals.no_endpoint(self.pool.name)
        latest = self._check_in_time(request, rank, now, self._needed_s(request, now))
        waiter = _Waiter(request, asyncio.get_running_loop().create_future(), avoid, latest, since=now)
        return await self._wait(waiter, rank, now)

    def spare(self, request: Request, *, avoid: frozenset[str]) -> Place | None:
        """A place that nobody waits for, at none of the endpoints to avoid; None: there is none now."""
        if self._queues:
            return None
        now = self._clock()
        endpoint = self.pool.pick(now, avoid=avoid)
        if endpoint is None or endpoint.name in avoid:
            return None
        return self._give(endpoint, request, self._rank(request), now)

    def look_again(self) -> None:
        """An endpoint has come, gone, or changed its state: who waits may have a place now."""
        if self._queues:
            self._dispatch(self._clock())

    def left(self, place: Place, outcome: Outcome, cost_s: float) -> None:
        """A place is free again: its endpoint and its class learn how it went."""
        now = self._clock()
        self._in_flight[place.rank] -= 1
        self._held.discard(place)
        self._sheddable.pop(place, None)
        self.pool.finished(place.endpoint, outcome, place.request.traffic_class.name, now)
        self._queues.settle(place.rank, place.request.client, outcome.held_s - cost_s)
        if self._queues:
            self._dispatch(now)

    def _rank(self, request: Request) -> int:
        """Its class's as it is now; a request may have got its class before a reload and come here after."""
        present = self._classes.get(request.traffic_class.name)
        return min(request.traffic_class.rank, len(self._classes) - 1) if present is None else present.rank

    def _check_in_time(self, request: Request, rank: int, now: float, takes_s: float | None) -> float:
        """Its latest start; raises Refused where that is over. takes_s: what an answer must be given. A place that
        nobody else wants is worth an even chance; one that others wait for goes to those that will make it."""
        latest = latest_start(request.deadline, expected_s=takes_s, rtt_s=request.timeline.rtt_s)
        if too_late(now, latest, class_in_flight=self._in_flight[rank]):
            raise self._too_late(request, now, takes_s)
        return latest

    def _needed_s(self, request: Request, now: float) -> float | None:
        return self.pool.needed_s(request.traffic_class.name, now)

    def _give(self, endpoint: Endpoint, request: Request, rank: int, now: float, *, cost_s: float = 0.0) -> Place:
        """One place of this endpoint is this request's. cost_s: what its client was charged for it already."""
        endpoint.take(now)
        self._in_flight[rank] += 1
        place = Place(self, endpoint, request, rank, cost_s)
        self._held.add(place)
        if request.evict is not None:
            self._sheddable[place] = None
        return place

    async def _wait(self, waiter: _Waiter, rank: int, now: float) -> Place:
        entry = self._offer(waiter, rank, now)
        try:
            # There is no place, or it would not be here; but a class that may not wait at all is told at once.
            self._expire(now)
            self._shed()
            return await waiter.place
        except asyncio.CancelledError:
            place = waiter.place
            # Cancelled in the very turn in which a place was handed over: nobody else knows of that place.
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().leave(Outcome.unused())
            raise
        finally:
            self._queues.withdraw(entry)
            self._growing.discard(entry)

    def _offer(self, waiter: _Waiter, rank: int, now: float) -> Entry[_Waiter]:
        request, body = waiter.request, waiter.request.body
        promise = request.traffic_class
        if request.deadline <= now:
            raise refusals.waited_out(self.pool.name)
        # Beyond its latest start it is here only because nothing of its class is in flight (qos/admission.py).
        leaves = min(now + promise.queue_s, waiter.latest if waiter.latest > now else request.deadline)
        for entry in self._growing:
            self._queues.resize(entry, _size(entry.item.request.body))
        size = _size(body)
        displaced = self._queues.room_for(rank, size, request.client)
        if displaced is None:
            raise self._full(request, rank)
        for entry in displaced:
            self._displace(entry, rank)
        entered = self._queues.offer(
            waiter,
            rank=rank,
            client=request.client,
            # Not the client's own deadline where that is shorter: a short timeout must not buy a place in front.
            due=request.timeline.received + promise.deadline_s,
            size=size,
            leaves=leaves,
        )
        if entered is None:
            raise self._full(request, rank)
        if body.declared is None and not body.ended:
            self._growing.add(entered)
        self._arm(min(leaves, now + _LOOK_AGAIN_S), now)
        return entered

    def _dispatch(self, now: float) -> None:
        """Hand every free place to whoever is next."""
        self._expire(now)
        places, free = self.pool.capacity(now)
        while free > 0 and (entry := self._queues.first(self._in_flight, places)) is not None:
            waiter, rank = entry.item, entry.rank
            if waiter.place.done():  # cancelled in this turn: still queued, because its coroutine has not run yet
                self._queues.withdraw(entry)
                continue
            try:
                self._check_in_time(waiter.request, rank, now, self._needed_s(waiter.request, now))
            except Refused as refusal:
                self._queues.withdraw(entry)
                waiter.place.set_exception(refusal)
                continue
            endpoint = self.pool.pick(now, waiting=len(self._queues), avoid=waiter.avoid)
            if endpoint is None:
                return
            free -= 1
            cost_s = self._expected_s(waiter.request, now) or 0.0
            self._queues.serve(entry, cost_s)
            place = self._give(endpoint, waiter.request, rank, now, cost_s=cost_s)
            place.protected = any(self._queues.depth(higher) for higher in range(rank))
            waiter.place.set_result(place)

    def _shed(self) -> None:
        """End sheddable work in flight for those of higher classes that found no place."""
        held = [place for place in self._sheddable if not place.protected]
        if not held:
            return
        # More than there are to go need not be counted.
        waiting = (rank for rank in range(len(self._classes)) for _ in range(min(len(held), self._queues.depth(rank))))
        for place in to_evict(waiting, held):
            place.evicted = True
            self.evicted[place.request.traffic_class.name] += 1
            if place.request.evict is not None:
                place.request.evict()

    def _displace(self, entry: Entry[_Waiter], rank: int) -> None:
        """It goes for one of this rank."""
        self._queues.withdraw(entry)
        waiter = entry.item
        if not waiter.place.done():
            retry_s = self._retry_after_s(waiter.request, entry.rank)
            refused = refusals.crowded if entry.rank == rank else refusals.displaced
            waiter.place.set_exception(refused(self.pool.name, waiter.request, retry_s))
            self.evicted[waiter.request.traffic_class.name] += entry.rank != rank

    def _expire(self, now: float) -> None:
        for entry in self._queues.expire(now=now):
            if not entry.item.place.done():
                entry.item.place.set_exception(self._expired(entry.item, now))

    def _arm(self, when: float, now: float) -> None:
        """One timer for all: it is set anew only for an earlier instant, and otherwise looks again when it fires."""
        if self._timer is not None:
            if self._timer_for <= when:
                return
            self._timer.cancel()
        self._timer_for = when
        self._timer = asyncio.get_running_loop().call_later(max(0.0, when - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        # Loops fire early by up to their clock's resolution (uvloop: 1 ms): what it was set for is due.
        now = max(self._clock(), self._timer_for)
        self._dispatch(now)
        if (following := self._queues.next_expiry()) is not None:
            self._arm(min(following, now + _LOOK_AGAIN_S), now)

    def _expired(self, waiter: _Waiter, now: float) -> Refused:
        request, pool = waiter.request, self.pool.name
        if now >= request.deadline:
            return refusals.waited_out(pool)
        if not self.pool.ready:
            return refusals.no_endpoint(pool)
        if now < waiter.since + request.traffic_class.queue_s:
            return self._too_late(request, now, self._needed_s(request, now))
        return refusals.queue_timeout(pool, request, self._retry_after_s(request, self._rank(request)))

    def _too_late(self, request: Request, now: float, takes_s: float | None) -> Refused:
        if now >= request.deadline:
            return refusals.waited_out(self.pool.name)
        return refusals.too_late(self.pool.name, request, now, takes_s)

    def _full(self, request: Request, rank: int) -> Refused:
        of_class = f"{self._queues.depth(rank)} requests of class {request.traffic_class.name}"
        waiting = f"{of_class}, {len(self._queues)} in all with {self._queues.bytes} bytes,"
        return refusals.full(self.pool.name, request, waiting, self._retry_after_s(request, rank))

    def _expected_s(self, request: Request, now: float) -> float | None:
        return self.pool.expected_s(request.traffic_class.name, now)

    def _retry_after_s(self, request: Request, rank: int) -> float:
        now = self._clock()
        return retry_after_s(
            sum(self._queues.depth(each) for each in range(rank + 1)),
            self.pool.places(now),
            self._expected_s(request, now),
            longest_s=request.traffic_class.queue_s,
        )


def _bounds(classes: ClassTable) -> list[ClassBounds]:
    return [ClassBounds(each.gate_share, each.most_waiting, each.most_waiting_bytes) for each in classes]


def _size(body: Body) -> int:
    """Bytes that a waiting body holds, or will hold as far as its sender said."""
    return max(body.received, body.declared or 0)
