# SPDX-License-Identifier: Apache-2.0
"""The gate: places, order, bounds, and the moments at which two things happen at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.body import Body
from backends.outcome import Outcome
from inferlane.errors import Reason
from proxy.walk.gate import Gate
from tests.fakes.endpoints import class_table_of, pool_of, traffic_class
from tests.fakes.fake_time import FakeTimeLoop
from tests.fakes.gate_story import Story


@pytest.fixture
def loop() -> Iterator[FakeTimeLoop]:
    loop = FakeTimeLoop()
    yield loop
    loop.finish()


@pytest.fixture
def story(loop: FakeTimeLoop) -> Story:
    """One endpoint with one place; three may wait, with 100 bytes."""
    return Story(loop, Gate(pool_of(1), class_table_of(4), max_requests=3, max_bytes=100, clock=loop.time))


def backend(story: Story, n: int = 0):
    return story.gate.pool.endpoints[n].backend


def test_a_free_place_is_taken_at_once(story):
    story.arrives("only")
    assert story.places["only"].endpoint.name == "e0"
    assert repr(story.gate) == "<Gate digits: 1 in flight, 0 waiting, 0 bytes>"


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
    story = Story(loop, Gate(pool_of(1, 2), class_table_of(4), clock=loop.time))
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
    story.loop.advance(0.95)
    story.loop.now += 0.0495  # uvloop rounds to milliseconds
    story.gate._on_timer()
    story.loop.settle()
    assert story.refusals["waiting"].reason is Reason.QUEUE_TIMEOUT


def test_the_number_of_waiting_requests_is_bounded(story):
    for name in ("running", "1", "2", "3", "one too many"):
        story.arrives(name, rank=0)
    refusal = story.refusals["one too many"]
    assert refusal.reason is Reason.QUEUE_FULL
    assert refusal.retry_after_s == 1.0
    waiting = "3 requests of class rank-0, 3 in all with 0 bytes, wait for pool digits already"
    assert refusal.detail == f"{waiting}, and one of 0 bytes is too many"


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
    assert repr(story.gate) == "<Gate digits: 1 in flight, 0 waiting, 0 bytes>"


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
    story = Story(loop, Gate(pool_of(1, 1), class_table_of(4), clock=loop.time))
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
    story.places["running"].leave(Outcome.unused())
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
    assert repr(story.gate) == "<Gate digits: 1 in flight, 0 waiting, 0 bytes>"
