# SPDX-License-Identifier: Apache-2.0
"""What the gate does for a class: deadlines kept or refused at once, room made, turns shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.outcome import Ending, Outcome
from inferlane.errors import Reason
from proxy.walk.gate import Gate
from qos.traffic_class import ClassTable
from tests.fakes.endpoints import class_table_of, pool_of, request_for, traffic_class
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


def answered(held_s: float) -> Outcome:
    return Outcome(ending=Ending.ANSWERED, latency_s=held_s, held_s=held_s)


def measured(story: Story, seconds: float, times: int = 40) -> None:
    """The pool learns what an answer takes."""
    for n in range(times):
        story.arrives(f"measured {n}", deadline=story.loop.now + 100.0)
        story.loop.now += seconds
        story.places[f"measured {n}"].leave(answered(seconds))


def test_what_cannot_be_answered_in_time_is_refused_at_once(story):
    measured(story, 0.5)
    story.arrives("running", deadline=story.loop.now + 9.0)
    story.arrives("hopeless", deadline=story.loop.now + 0.4)
    refusal = story.refusals["hopeless"]
    assert refusal.reason is Reason.TOO_LATE
    assert refusal.detail.startswith("400 ms are left, but pool digits takes 499 ms")
    assert refusal.retry_after_s is None


def test_what_becomes_hopeless_while_it_waits_is_told_then_and_not_at_its_deadline(story):
    measured(story, 0.5)
    story.arrives("running", deadline=story.loop.now + 9.0)
    story.arrives("waiting", queue_s=5.0, deadline=story.loop.now + 1.0)
    story.loop.advance(0.4)
    assert not story.tasks["waiting"].done()
    story.loop.advance(0.2)
    assert story.refusals["waiting"].reason is Reason.TOO_LATE


def test_the_client_s_way_counts_against_its_deadline(story):
    measured(story, 0.5)
    story.arrives("running", deadline=story.loop.now + 9.0)
    story.arrives("far away", deadline=story.loop.now + 1.0, rtt_s=0.6)
    assert story.refusals["far away"].reason is Reason.TOO_LATE
    story.arrives("near", deadline=story.loop.now + 1.0, rtt_s=0.1)
    assert not story.tasks["near"].done()


def test_one_goes_all_the_same_while_nobody_measures(story):
    measured(story, 0.5)
    story.arrives("probe", deadline=story.loop.now + 0.1)
    assert story.entered[-1] == "probe"


def test_a_higher_class_displaces_the_newest_of_the_lowest_when_the_queue_is_full(story):
    for name, rank in (("running", 0), ("old", 2), ("new", 2), ("middle", 1)):
        story.arrives(name, rank)
    story.arrives("urgent", 0)
    refusal = story.refusals["new"]
    assert (refusal.reason, refusal.status) == (Reason.EVICTED, 429)
    assert refusal.detail == "the queue of pool digits is full, and a higher class than rank-2 came"
    assert refusal.retry_after_s == 1.0
    assert story.gate.evicted == {"rank-2": 1}
    story.arrives("low", 3)
    assert story.refusals["low"].reason is Reason.QUEUE_FULL


def test_sheddable_work_in_flight_ends_for_a_higher_class_that_waits(story):
    ended = []
    story.arrives("shed", 3, evict=lambda: ended.append("shed"))
    story.arrives("lower", 3)
    assert ended == []
    story.arrives("urgent", 0)
    assert ended == ["shed"]
    assert story.gate.evicted == {"rank-3": 1}
    story.arrives("urgent too", 0)
    assert ended == ["shed"]  # one place is on its way, and there is no other to end
    story.leaves("shed")
    assert story.entered == ["shed", "urgent"]


def test_a_turn_that_was_given_in_spite_of_a_higher_class_is_not_taken_back(loop):
    """The ageing floor would be worth nothing to a sheddable class otherwise."""
    ended = []
    story = Story(loop, Gate(pool_of(1), class_table_of(2), clock=loop.time))
    story.arrives("running", 0)
    story.arrives("low", 1, queue_s=99.0, deadline=loop.now + 99.0, evict=lambda: ended.append("low"))
    for n in range(40):
        story.arrives(f"high {n}", 0, queue_s=99.0, deadline=loop.now + 99.0)
    story.leaves("running")
    while "low" not in story.entered:
        story.leaves(story.entered[-1])
    story.arrives("one more", 0, queue_s=99.0, deadline=loop.now + 99.0)
    assert ended == []
    assert len(story.entered) == 34


def test_a_share_is_given_before_a_higher_class_gets_more(loop):
    classes = [traffic_class(0), traffic_class(1, gate_share=0.5)]
    story = Story(loop, Gate(pool_of(1, 1), ClassTable(classes, classes[0]), clock=loop.time))
    for n in range(6):
        story.arrives(f"high {n}", 0)
    for n in range(2):
        story.arrives(f"low {n}", 1)
    story.leaves("high 0")
    assert story.entered[-1] == "low 0"
    story.leaves("high 1")
    assert story.entered[-1] == "high 2"


def test_clients_of_a_class_take_turns(story):
    story.arrives("running")
    story.arrives("greedy 1", client="greedy")
    story.arrives("greedy 2", client="greedy")
    story.arrives("modest", client="modest")
    for _ in range(3):
        story.loop.now += 0.1
        story.places[story.entered[-1]].leave(answered(0.1))
        story.loop.settle()
    assert story.entered == ["running", "greedy 1", "modest", "greedy 2"]


def test_a_spare_place_is_one_that_nobody_waits_for_and_at_another_endpoint(loop):
    story = Story(loop, Gate(pool_of(1, 1), class_table_of(1), clock=loop.time))
    request = request_for(traffic_class(0), now=loop.now)
    story.arrives("running")
    first = story.places["running"].endpoint.name
    spare = story.gate.spare(request, avoid=frozenset({first}))
    assert spare.endpoint.name != first
    assert story.gate.spare(request, avoid=frozenset()) is None
    story.arrives("waiting")
    spare.leave(Outcome.unused())
    story.loop.settle()
    assert story.entered == ["running", "waiting"]
    assert story.gate.spare(request, avoid=frozenset()) is None


def test_a_place_at_an_endpoint_to_avoid_is_better_than_none(loop):
    story = Story(loop, Gate(pool_of(1), class_table_of(1), clock=loop.time))
    story.arrives("again", avoid=frozenset({"e0"}))
    assert story.places["again"].endpoint.name == "e0"


def test_a_place_is_left_once(story):
    story.arrives("only")
    story.leaves("only")
    with pytest.raises(RuntimeError, match="left twice"):
        story.places["only"].leave(Outcome.unused())


def test_who_waits_notices_a_change_that_nobody_told(loop):
    """A probe or an admin: it is looked for ten times a second, and at once where `look_again` says so."""
    story = Story(loop, Gate(pool_of(1, 1), class_table_of(1), clock=loop.time))
    second = story.gate.pool.endpoints[1]
    second.draining = True
    for name in ("running", "waiting", "patient"):
        story.arrives(name)
    second.draining = False
    story.loop.advance(0.11)
    assert story.entered == ["running", "waiting"]
    second.draining = True
    story.leaves("waiting")
    second.draining = False
    assert story.entered == ["running", "waiting"]
    story.gate.look_again()
    story.loop.settle()
    assert story.entered == ["running", "waiting", "patient"]


def test_what_another_class_takes_is_no_reason_to_refuse(story):
    """A class of few requests never sees enough of its own; one of long ones in the same pool says nothing of them."""
    for n in range(40):
        story.arrives(f"long {n}", 1, deadline=story.loop.now + 100.0)
        story.loop.now += 2.0
        story.places[f"long {n}"].leave(answered(2.0))
    story.arrives("short", 0, deadline=story.loop.now + 0.5)
    story.arrives("short too", 0, deadline=story.loop.now + 0.5)
    assert not story.tasks["short too"].done()
    story.leaves("short")
    assert story.entered[-1] == "short too"


def test_time_outs_teach_what_a_place_must_be_given(story):
    """Of a pool that has become slower, no request that waited is answered, and answers tell what it once took."""
    measured(story, 0.1)
    for n in range(40):
        story.arrives(f"late {n}", deadline=story.loop.now + 0.4)
        story.loop.now += 0.4
        story.places[f"late {n}"].leave(Outcome(ending=Ending.TIMED_OUT, latency_s=0.4, held_s=0.4))
    story.arrives("running", deadline=story.loop.now + 9.0)
    story.arrives("waiting", deadline=story.loop.now + 0.3)
    assert story.refusals["waiting"].reason is Reason.TOO_LATE
    story.leaves("running")
    story.arrives("first of two", deadline=story.loop.now + 0.3)
    assert story.entered[-1] == "first of two"  # nobody waits, and what was answered took less


def test_one_client_that_fills_the_queue_makes_room_for_others_of_its_class(story):
    story.arrives("running", client="flood")
    for n in range(3):
        story.arrives(f"flood {n}", client="flood")
    story.arrives("one", client="polite")
    refusal = story.refusals["flood 2"]
    assert refusal.reason is Reason.QUEUE_FULL
    most = "no client has more requests of class rank-0 in it than flood"
    assert refusal.detail == f"the queue of pool digits is full, and {most}"
    assert story.gate.evicted["rank-0"] == 0
    story.arrives("two", client="polite")
    assert story.refusals["two"].reason is Reason.QUEUE_FULL  # both would have as much
    story.leaves("running")
    story.leaves("one")
    assert story.entered == ["running", "one", "flood 0"]
