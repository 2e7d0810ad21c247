# SPDX-License-Identifier: Apache-2.0
"""One request through one or more attempts: tried again elsewhere where an endpoint failed, hedged where its class is.

The shell around `verdict` and `qos.budget`: it awaits, cancels, and leaves every place exactly once. A request
that needs neither a second attempt nor a hedge costs no task and no copy of its body.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from backends.asking.attempt import Attempt, Copy, Place
from backends.asking.hedge import Race
from backends.asking.verdict import may_retry
from backends.body import Body
from backends.endpoint import Endpoint
from backends.messages import Reply, Request
from backends.outcome import Ending, Outcome
from inferlane.errors import Reason, Refused
from qos.budget import Budget
from qos.latency import Latencies
from qos.traffic_class import TrafficClass

__all__ = ["REPEATABLE", "AttemptCounts", "Attempts", "Learning", "Places"]

REPEATABLE = 256 * 1024
"""Bytes of body that are kept until the answer is here; a longer one is sent once."""
_LEAST_HEDGE_DELAY_S = 1e-3
# A little less is hedged than the budget allows, and more saved up: were both equal, it would often be empty for just
# the slowest (p99.9 of case D7 in benchmarks/sim: 399 ms so, 72 ms with these).
_HEDGED_PART = 0.9
_HEDGE_RESERVE = 30
_NOBODY: frozenset[str] = frozenset()


class Places(Protocol):
    """Where attempts get their places: the gate."""

    async def enter(self, request: Request, *, avoid: frozenset[str]) -> Place:
        """Wait for a place; at one of the endpoints to avoid only if there is no other. Raises Refused."""
        ...

    def spare(self, request: Request, *, avoid: frozenset[str]) -> Place | None:
        """A place elsewhere that is free now and that nobody waits for."""
        ...


class Learning(Protocol):
    """What attempts ask of the pool, and tell it before they are over."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """All of them; they may change between two requests."""
        ...

    def latencies(self, class_name: str) -> Latencies:
        """What this class's answers took: dispatch to first byte."""
        ...

    def first_byte(self, endpoint: Endpoint, latency_s: float, class_name: str, now: float) -> None:
        """A reply has begun that will hold its place for longer."""
        ...


@dataclass(slots=True)
class AttemptCounts:
    """For metrics."""

    retries: int = 0
    retries_denied: int = 0
    """By the budget."""
    hedges: int = 0
    hedges_won: int = 0


class Attempts:
    """Those of one pool.

    retry: the pool's budget for retries; most_retries: of one request; clock: monotonic seconds. Budgets for hedges
    follow the share that each class has.
    """

    def __init__(
        self,
        places: Places,
        pool: Learning,
        *,
        retry: Budget,
        most_retries: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._pool = pool
        self._retry = retry
        self._most_retries = most_retries
        self._clock = clock
        self._hedge: dict[str, tuple[float, Budget]] = {}
        self.counts = AttemptCounts()

    def __repr__(self) -> str:
        return f"<Attempts, at most {self._most_retries} retries, {self._retry!r}, {self.counts!r}>"

    async def infer(self, request: Request, *, asking: Callable[[str], None] | None = None) -> Attempt:
        """The best answer that can be had in time; whoever gets it calls its `leave`.

        asking: told the name of each endpoint when it is asked, for the record of requests that fail.
        Raises Refused as the gate or the last endpoint asked did; nothing is held then.
        """
        walk = _Walk(request, self._hedge_budget(request.traffic_class), asking)
        if request.body.complete and request.body.received <= REPEATABLE and self._may_repeat(walk):
            walk.payload = await request.body.read_all()
        place = await self._places.enter(request, avoid=_NOBODY)
        # Only now: requests that the gate refused cost no endpoint anything, and pay for no second attempt.
        self._retry.earn()
        if walk.hedge is not None:
            walk.hedge.earn()
        while True:
            copy = await self._ask(place, walk)
            reply = copy.result
            if isinstance(reply, Reply) and reply.status < 400 and isinstance(reply.body, bytes):
                # Nothing is to be judged before its end.
                return Attempt(copy, reply, count=len(walk.asked), hedged=walk.hedged)
            outcome = copy.outcome()
            if not may_retry(copy.result, outcome.ending) or not self._try_again(walk):
                return self._hand_on(copy, outcome, walk)
            copy.place.leave(outcome)
            if isinstance(copy.result, Reply) and not isinstance(copy.result.body, bytes):
                await copy.result.body.aclose()
            elsewhere = await self._elsewhere(walk)
            if elsewhere is None:
                return _failed(copy, outcome, walk)
            self.counts.retries += 1
            place = elsewhere

    def _may_repeat(self, walk: _Walk) -> bool:
        """Whether the body may be needed twice."""
        return (self._most_retries > 0 or walk.hedge is not None) and len(self._pool.endpoints) > 1

    def _try_again(self, walk: _Walk) -> bool:
        """Whether a failed request is tried once more. If so, that is paid for."""
        now = self._clock()
        if walk.payload is None or walk.retries >= self._most_retries or now >= walk.request.deadline:
            return False
        if not any(each.admits(now) for each in self._pool.endpoints if each.name not in walk.asked):
            return False
        if not self._retry.spend():
            self.counts.retries_denied += 1
            return False
        walk.retries += 1
        return True

    async def _elsewhere(self, walk: _Walk) -> Place | None:
        """A place at an endpoint that was not asked yet; None: there is none, and what failed is the answer."""
        try:
            place = await self._places.enter(walk.request, avoid=walk.asked)
        except Refused:
            return None  # what the endpoint said tells more than that there was no place to try again
        if place.endpoint.name in walk.asked:
            place.leave(Outcome.unused())
            return None
        return place

    async def _ask(self, place: Place, walk: _Walk) -> Copy:
        """One endpoint, or two; the copy that counts. Its place is held, whatever its result."""
        delay_s = self._hedge_delay_s(walk)
        if delay_s is not None:
            return await self._ask_hedged(place, walk, delay_s)
        request = walk.request
        if walk.payload is not None:
            request.body = Body.of(walk.payload)
        walk.ask(place)
        copy = Copy(place, request, self._clock)
        try:
            await copy.ask()
        except Refused:
            pass  # it is the copy's result, and judged as every result is
        except BaseException:
            place.leave(copy.outcome())
            raise
        return copy

    async def _ask_hedged(self, place: Place, walk: _Walk, delay_s: float) -> Copy:
        first = walk.copy(place, self._clock)
        walk.winner = None
        async with Race(lambda lost: self._lost(lost, first, walk)) as race:
            race.start(first)
            if not await race.over_within(delay_s) and (second := self._second(walk)) is not None:
                race.start(second)
            copy = await race.winner()
            walk.winner = copy
        self.counts.hedges_won += copy is not first and isinstance(copy.result, Reply)
        walk.request.timeline.dispatched = copy.request.timeline.dispatched
        walk.request.timeline.first_byte = copy.request.timeline.first_byte
        return copy

    def _second(self, walk: _Walk) -> Copy | None:
        """The hedge, where an endpoint has a place to spare and the class's budget allows it."""
        if walk.hedge is None or not walk.hedge.allows:
            return None
        place = self._places.spare(walk.request, avoid=walk.asked)
        if place is None:
            return None
        walk.hedge.spend()
        walk.hedged = True
        self.counts.hedges += 1
        return walk.copy(place, self._clock)

    def _lost(self, lost: Copy, first: Copy, walk: _Walk) -> None:
        """Had the first copies that were overtaken never been counted, latencies would look ever shorter than they
        are, hedges come ever earlier, and their budget be gone when they are needed."""
        if lost is first and walk.winner is not None and lost.outcome().ending is Ending.CANCELLED:
            now = self._clock()
            waited_s = now - (lost.request.timeline.dispatched or now)
            self._pool.latencies(walk.request.traffic_class.name).observe(waited_s, now)

    def _hedge_delay_s(self, walk: _Walk) -> float | None:
        """So long the first copy is waited for; None: no second one whatever happens."""
        request = walk.request
        if walk.hedge is None or walk.payload is None or request.streaming:
            return None
        latencies = self._pool.latencies(request.traffic_class.name)
        delay_s = latencies.quantile(1 - _HEDGED_PART * request.traffic_class.hedge, self._clock())
        return None if delay_s is None else max(delay_s, _LEAST_HEDGE_DELAY_S)

    def _hedge_budget(self, traffic_class: TrafficClass) -> Budget | None:
        share = traffic_class.hedge
        if share <= 0:
            return None
        known = self._hedge.get(traffic_class.name)
        if known is None or known[0] != share:  # new, or changed by a reload
            known = self._hedge[traffic_class.name] = (share, Budget(share, _HEDGE_RESERVE))
        return known[1]

    def _hand_on(self, copy: Copy, outcome: Outcome, walk: _Walk) -> Attempt:
        reply = copy.result
        if not isinstance(reply, Reply):
            copy.place.leave(outcome)
            raise _error(reply)
        if outcome.ending is Ending.ANSWERED and not isinstance(reply.body, bytes):
            # Its end may be minutes away, and others are to be sent elsewhere, or here, by what is known now.
            begun = (copy.request.timeline.dispatched or 0.0) + outcome.latency_s
            class_name = walk.request.traffic_class.name
            self._pool.first_byte(copy.place.endpoint, outcome.latency_s, class_name, begun)
        return Attempt(copy, reply, count=len(walk.asked), hedged=walk.hedged)


@dataclass(slots=True, eq=False)
class _Walk:
    """One request on its way through attempts."""

    request: Request
    hedge: Budget | None
    asking: Callable[[str], None] | None
    payload: bytes | None = None
    """Its body, where it can be sent again."""
    asked: frozenset[str] = _NOBODY
    retries: int = 0
    hedged: bool = False
    winner: Copy | None = None

    def ask(self, place: Place) -> None:
        """For the record."""
        name = place.endpoint.name
        self.asked |= {name}
        if self.asking is not None:
            self.asking(name)

    def copy(self, place: Place, clock: Callable[[], float]) -> Copy:
        """One of several at once: each has its own body and its own instants."""
        self.ask(place)
        request = self.request
        copy = Copy(
            place, replace(request, body=Body.of(self.payload or b""), timeline=replace(request.timeline)), clock
        )
        request.timeline.dispatched = copy.request.timeline.dispatched
        return copy


def _failed(copy: Copy, outcome: Outcome, walk: _Walk) -> Attempt:
    """What the client gets when a failed request was to be tried elsewhere, and nobody else had a place."""
    reply = copy.result
    if not isinstance(reply, Reply):
        raise _error(reply)
    if isinstance(reply.body, bytes):
        return Attempt(copy, reply, count=len(walk.asked), hedged=walk.hedged, left=True)
    detail = f"endpoint {copy.place.endpoint.name} answered with status {reply.status}, and no other had a place"
    raise Refused(Reason.BACKEND_FAILED, detail, retry_after_s=outcome.retry_after_s)


def _error(result: BaseException | None) -> BaseException:
    assert result is not None  # asked, and no reply: then there is an error
    return result
