# SPDX-License-Identifier: Apache-2.0
"""The gate: places, order, bounds, and the moments at which two things happen at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.body import Body
from backends.endpoint import Endpoint
from backends.messages import Request
from inferlane.errors import Reason, Refused
from proxy.gate import Gate
from tests.fakes.endpoints import pool_of, request_for, traffic_class
from tests.fakes.fake_time import FakeTimeLoop


@pytest.fixture
def loop() -> Iterator[FakeTimeLoop]:
    loop = FakeTimeLoop()
    yield loop
    loop.finish()


@dataclass
class Story:
    """One gate and the names of those who entered it, as told by a test."""

    loop: FakeTimeLoop
    gate: Gate
    entered: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    places: dict[str, Endpoint] = field(default_factory=dict)
    refusals: dict[str, Refused] = field(default_factory=dict)

    def arrives(
        self, name: str, rank: int = 0, *, settle: bool = True, queue_s: float = 1.0, **request: object
    ) -> None:
        asked = request_for(traffic_class(rank, queue_s=queue_s), now=self.loop.now, **request)
        self.tasks[name] = self.loop.create_task(self._enter(name, asked))
        if settle:
            self.loop.settle()

    async def _enter(self, name: str, asked: Request) -> None:
        try:
            self.places[name] = await self.gate.enter(asked)
        except Refused as refusal:
            self.refusals[name] = refusal
        else:
            self.entered.append(name)

    def leaves(self, name: str) -> None:
        self.gate.leave(self.places[name])
        self.loop.settle()


@pytest.fixture
def story(loop: FakeTimeLoop) -> Story:
    """One endpoint with one place; three may wait, with 100 bytes."""
    return Story(loop, Gate(pool_of(1), max_requests=3, max_bytes=100, clock=loop.time))


def backend(story: Story, n: int = 0):
    return story.gate.pool.endpoints[n].backend


def test_a_free_place_is_taken_at_once(story):
    story.arrives("only")
    assert story.places["only"].name == "e0"
    assert repr(story.gate) == "<Gate digits: 0 waiting, 0 bytes>"


def test_the_next_enters_when_a_place_is_given_back(story):
    story.arrives("first")
    story.arrives("second")
    assert story.entered == ["first"]
    assert story.gate.depth(traffic_class(0)) == 1
    story.leaves("first")
    assert story.entered == ["first", "second"]
    assert story.gate.pool.endpoints[0].in_flight == 1


def test_strict_rank_and_first_come_first_served_inside_a_class(story):
    story.arrives("running")
    for name, rank in (("batch", 2), ("interactive", 1), ("realtime", 0)):
        story.arrives(name, rank)
    story.leaves("running")
    story.leaves("realtime")
    story.arrives("second interactive", 1)
    story.leaves("interactive")
    story.leaves("second interactive")
    assert story.entered == ["running", "realtime", "interactive", "second interactive", "batch"]


def test_several_places_are_handed_out_in_order(loop):
    story = Story(loop, Gate(pool_of(1, 2), clock=loop.time))
    for n in range(5):
        story.arrives(str(n), rank=n % 2)
    assert sorted(story.entered) == ["0", "1", "2"]
    story.leaves("0")
    story.leaves("1")
    assert story.entered[3:] == ["4", "3"]


def test_a_newcomer_does_not_overtake_in_the_turn_in_which_a_place_comes_free(story):
    story.arrives("first")
    story.arrives("second")
    story.arrives("third", settle=False)
    story.leaves("first")
    assert story.entered == ["first", "second"]


def test_waiting_ends_after_the_class_s_queue_time(story):
    story.arrives("running")
    story.arrives("waiting", queue_s=0.25)
    story.loop.advance(0.24)
    assert not story.tasks["waiting"].done()
    story.loop.advance(0.02)
    refusal = story.refusals["waiting"]
    assert refusal.reason is Reason.QUEUE_TIMEOUT
    assert refusal.retry_after_s == 0.25
    assert refusal.detail == "no place in pool digits came free within the 0.25 s that class rank-0 waits"
    assert story.gate.depth(traffic_class(0)) == 0


def test_waiting_ends_at_the_deadline(story):
    story.arrives("running")
    story.arrives("waiting", deadline=story.loop.now + 0.5)
    story.loop.advance(0.5)
    refusal = story.refusals["waiting"]
    assert refusal.reason is Reason.DEADLINE
    assert refusal.retry_after_s is None


def test_a_class_that_never_waits_is_refused_without_a_turn_of_the_loop(story):
    story.arrives("running", queue_s=0.0)
    assert story.entered == ["running"]
    story.arrives("waiting", queue_s=0.0)
    assert story.refusals["waiting"].reason is Reason.QUEUE_TIMEOUT
    assert story.refusals["waiting"].retry_after_s == 0.01


def test_one_timer_serves_expiries_in_any_order(story):
    story.arrives("running")
    for name, queue_s in (("late", 3.0), ("early", 1.0), ("between", 2.0)):
        story.arrives(name, queue_s=queue_s)
    ended = []
    for _ in range(3):
        story.loop.advance(1.0)
        ended.append([name for name, task in story.tasks.items() if task.done()])
    assert ended == [["running", "early"], ["running", "early", "between"], list(story.tasks)]


def test_what_has_expired_gets_no_place_even_before_the_timer_fires(story):
    story.arrives("running")
    story.arrives("waiting", queue_s=1.0)
    story.arrives("patient", queue_s=3.0)
    story.loop.now += 1.0
    story.leaves("running")
    assert story.refusals["waiting"].reason is Reason.QUEUE_TIMEOUT
    assert story.entered == ["running", "patient"]


def test_a_timer_that_fires_early_does_not_fire_twice(story):
    story.arrives("running")
    story.arrives("waiting", queue_s=1.0)
    story.loop.now += 0.9995  # uvloop rounds to milliseconds
    story.gate._on_timer()
    story.loop.settle()
    assert story.refusals["waiting"].reason is Reason.QUEUE_TIMEOUT


def test_the_number_of_waiting_requests_is_bounded(story):
    for name in ("running", "1", "2", "3", "one too many"):
        story.arrives(name, rank=0)
    refusal = story.refusals["one too many"]
    assert refusal.reason is Reason.QUEUE_FULL
    assert refusal.retry_after_s == 1.0
    assert refusal.detail == "3 requests with 0 bytes wait for pool digits already, and one of 0 bytes is too many"


def test_the_bytes_of_waiting_requests_are_bounded_by_what_was_announced(story):
    story.arrives("running", body=Body(limit=1000, declared=90))
    story.arrives("announced", body=Body(limit=1000, declared=90))
    story.arrives("too much", body=Body.of(bytes(11)))
    assert story.refusals["too much"].reason is Reason.QUEUE_FULL
    story.arrives("fits", body=Body.of(bytes(10)))
    assert not story.tasks["fits"].done()


def test_the_bytes_of_a_body_of_unknown_length_count_as_they_come(story):
    growing = Body(limit=1000)
    story.arrives("running")
    story.arrives("growing", body=growing)
    growing.feed(bytes(95), ended=False)
    story.arrives("too much", body=Body.of(bytes(6)))
    assert story.refusals["too much"].reason is Reason.QUEUE_FULL
    story.leaves("running")
    assert repr(story.gate) == "<Gate digits: 0 waiting, 0 bytes>"


def test_nobody_waits_longer_than_the_longest_retry(story):
    story.arrives("running")
    for n in range(4):
        story.arrives(str(n), queue_s=600.0)
    assert story.refusals["3"].retry_after_s == 5.0


def test_no_endpoint_ready_is_said_at_once(story):
    backend(story).ready = False
    story.arrives("asks")
    assert story.refusals["asks"].reason is Reason.NO_ENDPOINT
    assert story.refusals["asks"].retry_after_s == 1.0


def test_who_waited_for_an_endpoint_that_fell_over_hears_the_true_reason(story):
    story.arrives("running")
    story.arrives("waiting")
    backend(story).ready = False
    story.leaves("running")
    story.loop.advance(1.0)
    assert story.refusals["waiting"].reason is Reason.NO_ENDPOINT


def test_an_endpoint_that_became_ready_serves_those_who_wait_before_the_newcomer(loop):
    story = Story(loop, Gate(pool_of(1, 1), clock=loop.time))
    backend(story, 1).ready = False
    story.arrives("running")
    story.arrives("waiting")
    backend(story, 1).ready = True
    story.arrives("newcomer")
    assert story.entered == ["running", "waiting"]


def test_a_cancelled_waiter_leaves_the_queue(story):
    story.arrives("running")
    story.arrives("leaver")
    story.arrives("stayer")
    story.tasks["leaver"].cancel()
    story.leaves("running")
    assert story.entered == ["running", "stayer"]
    assert story.tasks["leaver"].cancelled()


def test_a_place_handed_to_a_waiter_cancelled_in_the_same_turn_is_not_lost(story):
    story.arrives("running")
    story.arrives("leaver")
    story.arrives("next")
    story.gate.leave(story.places["running"])
    story.tasks["leaver"].cancel()
    story.loop.settle()
    assert story.tasks["leaver"].cancelled()
    assert story.entered == ["running", "next"]
    story.leaves("next")
    assert story.gate.pool.endpoints[0].in_flight == 0


def test_a_waiter_cancelled_in_the_turn_in_which_it_expired_leaves_no_trace(story):
    story.arrives("running")
    story.arrives("leaver")
    story.loop.now += 1.0
    story.gate._on_timer()
    story.tasks["leaver"].cancel()
    story.loop.settle()
    assert story.tasks["leaver"].cancelled()
    assert repr(story.gate) == "<Gate digits: 0 waiting, 0 bytes>"


@dataclass(eq=False)
class Visitor:
    order: int
    request: Request
    leaves: float = 0.0
    refused: tuple[Reason, float] | None = None
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.request.traffic_class.rank, self.order

    @property
    def waits(self) -> bool:
        return self.task is not None and not self.task.done()

    async def visit(self, machine: AnyOrderOfEvents) -> None:
        now = machine.loop.now
        self.leaves = min(now + self.request.traffic_class.queue_s, self.request.deadline)
        try:
            machine.inside[self] = await machine.gate.enter(self.request)
            machine.grants.append(self)
        except Refused as refusal:
            self.refused = refusal.reason, machine.loop.now


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Arrivals, departures, cancellations and time, in any order and any number of them in one turn of the loop."""

    MOST, BYTES = 4, 100

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeTimeLoop()
        self.pool = pool_of(1, 2)
        self.gate = Gate(self.pool, max_requests=self.MOST, max_bytes=self.BYTES, clock=self.loop.time)
        self.visitors: list[Visitor] = []
        self.inside: dict[Visitor, Endpoint] = {}
        self.grants: list[Visitor] = []
        self.waiting_before: list[Visitor] = []
        self.settled = True

    def waiting(self) -> list[Visitor]:
        return [each for each in self.visitors if each.waits]

    @rule(rank=st.integers(0, 2), queue_s=st.sampled_from([0.0, 1.0, 3.0]), lifetime=st.sampled_from([2.0, 9.0]))
    def arrive(self, rank: int, queue_s: float, lifetime: float) -> None:
        of = traffic_class(rank, queue_s=queue_s, deadline_s=lifetime)
        body = Body(limit=1000, declared=40 if rank == 1 else 10)
        visitor = Visitor(len(self.visitors), request_for(of, now=self.loop.now, body=body))
        visitor.task = self.loop.create_task(visitor.visit(self))
        self.visitors.append(visitor)
        self.settled = False

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        visitor = data.draw(st.sampled_from(sorted(self.inside, key=lambda each: each.order)))
        self.gate.leave(self.inside.pop(visitor))
        self.settled = False

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        leaver = data.draw(st.sampled_from(self.waiting()))
        assert leaver.task is not None
        leaver.task.cancel()
        self.settled = False

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds
        self.settled = False

    @rule()
    def settle(self) -> None:
        self.loop.settle()
        self.settled = True
        still = [each for each in self.waiting_before if each.waits]
        for granted in self.grants:
            assert all(granted.key < other.key for other in still), "overtaken"
        from_queue = [each.key for each in self.grants if each in self.waiting_before]
        assert from_queue == sorted(from_queue), "reordered"
        self.grants.clear()
        self.waiting_before = self.waiting()

    @invariant()
    def never_more_in_flight_than_places(self) -> None:
        assert all(each.in_flight <= each.slots for each in self.pool.endpoints)

    @invariant()
    def nothing_is_lost(self) -> None:
        if not self.settled:
            return
        waiting = self.waiting()
        assert sum(each.in_flight for each in self.pool.endpoints) == len(self.inside), "a place was lost"
        assert not waiting or not any(each.free for each in self.pool.endpoints), "a wake-up was lost"
        assert all(each.leaves > self.loop.now for each in waiting), "somebody waits too long"
        assert len(waiting) <= self.MOST
        assert sum(each.request.body.declared or 0 for each in waiting) <= self.BYTES
        for rank in range(3):
            assert self.gate.depth(traffic_class(rank)) == sum(each.key[0] == rank for each in waiting)

    @invariant()
    def refusals_are_true(self) -> None:
        for visitor in self.visitors:
            match visitor.refused:
                case Reason.QUEUE_TIMEOUT, when:
                    assert visitor.leaves <= when
                    assert visitor.leaves < visitor.request.deadline
                case Reason.DEADLINE, when:
                    assert visitor.leaves == visitor.request.deadline <= when
                case refused:
                    assert refused is None or refused[0] is Reason.QUEUE_FULL

    def teardown(self) -> None:
        self.loop.finish()
        for endpoint in self.inside.values():
            self.gate.leave(endpoint)
        assert all(each.in_flight == 0 for each in self.pool.endpoints)
        assert len(self.gate._queue) == 0
        assert not self.gate._growing


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
