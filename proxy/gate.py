# SPDX-License-Identifier: Apache-2.0
"""Late binding: a request waits here, by class, until an endpoint of its pool has a place, and no longer than promised.

Which one is next is the queue's to decide (qos/scheduler.py), which endpoint is the pool's; the gate
only keeps them and the waiting coroutines together. A later policy replaces the queue behind the same interface.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from backends.body import Body
from backends.endpoint import Endpoint
from backends.messages import Request
from backends.pool import Pool
from inferlane.errors import Reason, Refused
from qos.scheduler import Entry, RankedQueue
from qos.traffic_class import ClassTable, TrafficClass

__all__ = ["Gate"]

MAX_REQUESTS = 1024
MAX_BYTES = 64 << 20

# Nothing tells when an endpoint will be ready again; often enough to notice, seldom enough to be harmless.
_RETRY_NO_ENDPOINT_S = 1.0
# A refusal sends nobody away for longer or shorter, whatever its class would have waited.
_RETRY_LEAST_S = 0.01
_RETRY_MOST_S = 5.0


@dataclass(slots=True, eq=False)
class _Waiter:
    request: Request
    place: asyncio.Future[Endpoint]


class Gate:
    """The places of one pool, and who waits for them."""

    def __init__(
        self,
        pool: Pool,
        *,
        max_requests: int = MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self._queue: RankedQueue[_Waiter] = RankedQueue(max_entries=max_requests, max_bytes=max_bytes)
        # Bodies of unknown length still arriving: counted again whenever somebody new wants to wait.
        self._growing: set[Entry[_Waiter]] = set()
        self._clock = clock
        self._classes: ClassTable | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = 0.0

    def __repr__(self) -> str:
        return f"<Gate {self.pool.name}: {len(self._queue)} waiting, {self._queue.bytes} bytes>"

    def depth(self, traffic_class: TrafficClass) -> int:
        """How many requests of this class wait."""
        return self._queue.depth(traffic_class.rank)

    def use_classes(self, classes: ClassTable) -> None:
        """The classes have changed. Who waits keeps what was promised, but has its turn by the new order; one whose
        class is no more keeps its rank."""
        self._classes = classes
        self._queue.rank_again(lambda entry: self._rank(entry.item.request))

    async def enter(self, request: Request) -> Endpoint:
        """Wait for a place and take it; whoever got one gives it back with `leave`.

        Raises Refused: NO_ENDPOINT, QUEUE_FULL, QUEUE_TIMEOUT or DEADLINE.
        """
        if self._queue:
            # An endpoint may have become ready since; what it has to give is first theirs who wait.
            self._dispatch()
        endpoint = self.pool.pick()
        if endpoint is not None:
            endpoint.take()
            return endpoint
        if not self.pool.ready:
            raise self._no_endpoint()
        return await self._wait(request)

    def leave(self, endpoint: Endpoint) -> None:
        """Give a place back; the next in order gets it."""
        endpoint.release()
        if self._queue:
            self._dispatch()

    def _rank(self, request: Request) -> int:
        """Its class's as it is now; a request may have got its class before a reload and come here after."""
        rank = request.traffic_class.rank
        if self._classes is None:
            return rank
        present = self._classes.get(request.traffic_class.name)
        return min(rank, len(self._classes) - 1) if present is None else present.rank

    async def _wait(self, request: Request) -> Endpoint:
        place: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        entry = self._offer(_Waiter(request, place))
        try:
            return await place
        except asyncio.CancelledError:
            # Cancelled in the very turn in which a place was handed over: nobody else knows of that place.
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave(place.result())
            raise
        finally:
            self._queue.withdraw(entry)
            self._growing.discard(entry)

    def _offer(self, waiter: _Waiter) -> Entry[_Waiter]:
        request, now = waiter.request, self._clock()
        leaves = min(now + request.traffic_class.queue_s, request.deadline)
        if leaves <= now:
            raise self._expired(request, leaves)
        for entry in self._growing:
            self._queue.resize(entry, _size(entry.item.request.body))
        body = request.body
        entered = self._queue.offer(waiter, rank=self._rank(request), size=_size(body), leaves=leaves)
        if entered is None:
            raise self._full(request)
        if body.declared is None and not body.ended:
            self._growing.add(entered)
        self._arm(leaves, now)
        return entered

    def _dispatch(self) -> None:
        """Hand every free place to whoever is next."""
        self._expire(self._clock())
        while (entry := self._queue.first()) is not None:
            # Cancelled in this turn: still queued, because its coroutine has not run yet.
            if not entry.item.place.done():
                endpoint = self.pool.pick()
                if endpoint is None:
                    return
                endpoint.take()
                entry.item.place.set_result(endpoint)
            self._queue.withdraw(entry)

    def _expire(self, now: float) -> None:
        for entry in self._queue.expire(now=now):
            if not entry.item.place.done():
                entry.item.place.set_exception(self._expired(entry.item.request, entry.leaves))

    def _arm(self, when: float, now: float) -> None:
        """One timer for all: it is set anew only for an earlier instant, and otherwise looks again when it fires."""
        if self._timer is not None:
            if self._timer_for <= when:
                return
            self._timer.cancel()
        self._timer_for = when
        self._timer = asyncio.get_running_loop().call_later(when - now, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        # Loops fire early by up to their clock's resolution (uvloop: 1 ms): what it was set for is due.
        now = max(self._clock(), self._timer_for)
        self._expire(now)
        if (following := self._queue.next_expiry()) is not None:
            self._arm(following, now)

    def _expired(self, request: Request, leaves: float) -> Refused:
        if leaves >= request.deadline:
            return Refused(Reason.DEADLINE, f"the deadline passed while waiting for a place in pool {self.pool.name}")
        if not self.pool.ready:
            return self._no_endpoint()
        wait = f"the {request.traffic_class.queue_s:g} s that class {request.traffic_class.name} waits"
        detail = f"no place in pool {self.pool.name} came free within {wait}"
        return Refused(Reason.QUEUE_TIMEOUT, detail, retry_after_s=_retry_after_s(request))

    def _full(self, request: Request) -> Refused:
        waiting = f"{len(self._queue)} requests with {self._queue.bytes} bytes"
        detail = f"{waiting} wait for pool {self.pool.name} already, and one of {_size(request.body)} bytes is too many"
        return Refused(Reason.QUEUE_FULL, detail, retry_after_s=_retry_after_s(request))

    def _no_endpoint(self) -> Refused:
        detail = f"no endpoint of pool {self.pool.name} is ready"
        return Refused(Reason.NO_ENDPOINT, detail, retry_after_s=_RETRY_NO_ENDPOINT_S)


def _retry_after_s(request: Request) -> float:
    """Within its queue time everybody who waits now in this class is served or has left."""
    return min(max(request.traffic_class.queue_s, _RETRY_LEAST_S), _RETRY_MOST_S)


def _size(body: Body) -> int:
    """Bytes that a waiting body holds, or will hold as far as its sender said."""
    return max(body.received, body.declared or 0)
