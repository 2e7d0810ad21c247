# SPDX-License-Identifier: Apache-2.0
"""Late binding: a request waits here, by class, until an endpoint of its pool has a place, and no longer than promised.

Whose turn it is, is the queues' to decide (qos/scheduler.py), who may still wait qos/admission.py's, and which endpoint
the pool's; the gate only keeps them, the waiting coroutines and the places given out together.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from backends.body import Body
from backends.endpoint import Endpoint
from backends.ledger.line import Line
from backends.messages import Request
from backends.outcome import Outcome
from backends.pool import Pool
from inferlane.errors import Refused
from proxy.walk import refusals
from proxy.walk.place import Place
from proxy.walk.shared_queues import SharedQueues
from proxy.walk.shedding import Shedding
from qos.admission import latest_start, retry_after_s, too_late
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


class Gate:
    """The places of one pool, who has them, and who waits for them. line: shared with the gates of other workers."""

    def __init__(
        self,
        pool: Pool,
        classes: ClassTable,
        *,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
        line: Line | None = None,
    ) -> None:
        self.pool = pool
        self.evicted: Counter[str] = Counter()
        """By class: work ended, or waiting requests displaced, for a higher class."""
        self._classes = classes
        self._line = line
        bounds = _bounds(classes)
        own: ClassQueues[_Waiter] = ClassQueues(bounds, max_entries=max_requests, max_bytes=max_bytes)
        self._queues: ClassQueues[_Waiter] | SharedQueues[_Waiter] = own
        if line is not None:
            self._queues = SharedQueues(own, line, bounds, since=lambda waiter: waiter.since, clock=clock)
            line.look = self._look
        self._in_flight = [0] * len(classes)
        self._held: set[Place] = set()
        self._shedding = Shedding(self.evicted, line)
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
        if self._line is not None:
            self._line.holds(self._in_flight)
            self._shedding.tell()
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
            place = self._at_once(request, rank, now, avoid)
            if place is not None:
                return place
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
        with self._line or nullcontext():
            if self._line is not None and self._line.others_wait:
                return None
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
        now, line = self._clock(), self._line
        self._in_flight[place.rank] -= 1
        self._held.discard(place)
        self._shedding.discard(place)
        if line is None:
            self._finished(place, outcome, cost_s, now)
            if self._queues:
                self._dispatch(now)
            return
        with line:
            self._finished(place, outcome, cost_s, now)
            line.left(place.rank)
            if self._queues or line.others_wait:
                self._dispatch(now, freed=True)

    def _finished(self, place: Place, outcome: Outcome, cost_s: float, now: float) -> None:
        self.pool.finished(place.endpoint, outcome, place.request.traffic_class.name, now)
        self._queues.settle(place.rank, place.request.client, outcome.held_s - cost_s)

    def _look(self) -> None:
        """Another worker left a place, and it is this one's turn; or found none for a higher class."""
        self._dispatch(self._clock(), freed=True)
        self._shed()

    def _at_once(self, request: Request, rank: int, now: float, avoid: frozenset[str]) -> Place | None:
        """A place that is free, if nobody waits for it in another worker."""
        if self._line is None:
            endpoint = self.pool.pick(now, waiting=1, avoid=avoid)
            return None if endpoint is None else self._give(endpoint, request, rank, now)
        with self._line as line:
            endpoint = None if line.others_wait else self.pool.pick(now, waiting=1, avoid=avoid)
            return None if endpoint is None else self._give(endpoint, request, rank, now)

    def _rank(self, request: Request) -> int:
        """Its class's as it is now; a request may have got its class before a reload and come here after."""
        present = self._classes.get(request.traffic_class.name)
        return min(request.traffic_class.rank, len(self._classes) - 1) if present is None else present.rank

    def _check_in_time(self, request: Request, rank: int, now: float, takes_s: float | None) -> float:
        """Its latest start; raises Refused where that is over. takes_s: what an answer must be given. A place that
        nobody else wants is worth an even chance; one that others wait for goes to those that will make it."""
        latest = latest_start(request.deadline, expected_s=takes_s, rtt_s=request.timeline.rtt_s)
        if too_late(now, latest, class_in_flight=self._in_flight[rank] or self._held_elsewhere(rank)):
            raise self._too_late(request, now, takes_s)
        return latest

    def _held_elsewhere(self, rank: int) -> int:
        return 0 if self._line is None else self._line.held(rank)

    def _waiting(self, rank: int) -> int:
        """Of this rank, in all workers."""
        return self._queues.depth(rank) if self._line is None else self._line.waiting(rank)

    def _needed_s(self, request: Request, now: float) -> float | None:
        return self.pool.needed_s(request.traffic_class.name, now)

    def _give(self, endpoint: Endpoint, request: Request, rank: int, now: float, *, cost_s: float = 0.0) -> Place:
        """One place of this endpoint is this request's. cost_s: what its client was charged for it already."""
        endpoint.take(now)
        self._in_flight[rank] += 1
        if self._line is not None:
            self._line.took(rank)
        place = Place(self.left, endpoint, request, rank, cost_s)
        self._held.add(place)
        self._shedding.add(place)
        return place

    async def _wait(self, waiter: _Waiter, rank: int, now: float) -> Place:
        if self._line is None:
            entry = self._offer(waiter, rank, now)
        else:
            with self._line:
                entry = self._offer(waiter, rank, now)
                # Somebody may have left a place meanwhile who knew of nobody waiting here, or it is this one's turn.
                self._dispatch(now)
            self._line.listen(asyncio.get_running_loop())
        try:
            # There is no place, or it would not be here; but a class that may not wait at all is told at once.
            if entry.leaves <= now:
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

    def _dispatch(self, now: float, *, freed: bool = False) -> None:
        """Hand every free place to whoever is next. freed: somebody left one, whether or not it can be used here."""
        self._expire(now)
        if self._line is None:
            self._hand_out(now)
            return
        with self._line as line:
            free = self._hand_out(now)
            if free is not None:
                line.pass_on(now, self.pool.places(now), free=freed or free > 0)

    def _hand_out(self, now: float) -> int | None:
        """How many are free, if none could be used."""
        places, free = self.pool.capacity(now)
        used = False
        while free > 0:
            if (entry := self._queues.first(self._in_flight, places)) is None:
                return None
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
                return free
            free, used = free - 1, True
            cost_s = self._expected_s(waiter.request, now) or 0.0
            self._queues.serve(entry, cost_s)
            place = self._give(endpoint, waiter.request, rank, now, cost_s=cost_s)
            if place.request.evict is not None:
                place.protected = any(self._waiting(higher) for higher in range(rank))
            waiter.place.set_result(place)
        return None if used else free

    def _shed(self) -> None:
        if self._line is None and not self._shedding:
            return
        self._shedding.shed([self._waiting(rank) for rank in range(len(self._classes))])

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
            sum(self._waiting(each) for each in range(rank + 1)),
            self.pool.places(now),
            self._expected_s(request, now),
            longest_s=request.traffic_class.queue_s,
        )


def _bounds(classes: ClassTable) -> list[ClassBounds]:
    return [ClassBounds(each.gate_share, each.most_waiting, each.most_waiting_bytes) for each in classes]


def _size(body: Body) -> int:
    """Bytes that a waiting body holds, or will hold as far as its sender said."""
    return max(body.received, body.declared or 0)
