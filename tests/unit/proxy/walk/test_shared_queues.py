# SPDX-License-Identifier: Apache-2.0
"""Gates of several workers on one ledger: together they are one gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.body import Body
from backends.choosing.picker import least_in_flight
from backends.endpoint import Endpoint
from backends.outcome import Outcome
from backends.pool import Pool
from inferlane.errors import Reason
from qos.limit import FixedLimit
from tests.fakes.endpoints import IdleBackend, class_table_of, pool_of, request_for, traffic_class
from tests.fakes.fake_time import FakeTimeLoop
from tests.fakes.gate_story import Story
from tests.fakes.ledgers import Crew, stories


@pytest.fixture
def loop() -> FakeTimeLoop:
    return FakeTimeLoop()


@pytest.fixture
def crew(loop: FakeTimeLoop) -> Iterator[Crew]:
    with Crew(3) as crew:
        yield crew
        loop.finish()


@pytest.fixture
def gates(crew: Crew, loop: FakeTimeLoop) -> list[Story]:
    """One place for all; three may wait, with 100 bytes."""
    return stories(crew, [pool_of(1) for _ in range(3)], class_table_of(4), loop, max_requests=3, max_bytes=100)


def test_a_place_that_another_worker_holds_is_taken(gates):
    first, second, _ = gates
    first.arrives("one")
    second.arrives("two")
    assert (first.entered, second.entered) == (["one"], [])
    assert second.gate.pool.endpoints[0].in_flight == 0
    assert repr(second.gate.pool.endpoints[0]) == "<Endpoint e0 healthy, 1 of 1 in flight>"


def test_who_waits_in_another_worker_is_woken_when_it_comes_free(gates, loop):
    first, second, _ = gates
    first.arrives("one")
    second.arrives("two")
    first.leaves("one")
    loop.settle()
    assert second.entered == ["two"]


def test_the_better_rank_goes_first_wherever_it_waits(gates, loop):
    first, second, third = gates
    first.arrives("running")
    first.arrives("batch", 3)
    second.arrives("realtime", 0)
    third.arrives("interactive", 1)
    first.leaves("running")
    loop.settle()
    assert second.entered == ["realtime"]
    second.leaves("realtime")
    loop.settle()
    assert third.entered == ["interactive"]
    third.leaves("interactive")
    loop.settle()
    assert first.entered == ["running", "batch"]


def test_a_newcomer_does_not_pass_who_waits_in_another_worker(gates):
    first, second, third = gates
    first.arrives("running")
    second.arrives("waits", 1)
    first.places["running"].leave(Outcome.unused())
    third.arrives("newcomer", 1, settle=False)
    first.loop.settle()
    assert (second.entered, third.entered) == (["waits"], [])


def test_work_of_another_worker_is_shed_for_a_higher_class(crew, loop):
    first, second, third = stories(crew, [pool_of(2) for _ in range(3)], class_table_of(4), loop)
    told: list[str] = []
    first.arrives("older", 3, evict=lambda: told.append("older"))
    second.arrives("newer", 3, evict=lambda: told.append("newer"))
    third.arrives("realtime", 0)
    loop.settle()
    assert len(told) == 1, "one for one"
    third.arrives("another", 0)
    loop.settle()
    assert sorted(told) == ["newer", "older"]
    third.arrives("a third", 0)
    third.arrives("a fourth", 3)
    loop.settle()
    assert len(told) == 2
    first.leaves("older")
    second.leaves("newer")
    loop.settle()
    assert third.entered == ["realtime", "another"]


def test_nothing_is_shed_for_a_class_that_is_no_higher(crew, loop):
    first, second, _ = stories(crew, [pool_of(1) for _ in range(3)], class_table_of(4), loop)
    told: list[str] = []
    first.arrives("running", 2, evict=lambda: told.append("running"))
    second.arrives("equal", 2)
    second.arrives("lower", 3)
    loop.settle()
    assert told == []


def test_a_hedge_takes_no_place_that_somebody_waits_for_elsewhere(crew, loop):
    first, second, _ = stories(crew, [pool_of(1, 2) for _ in range(3)], class_table_of(2), loop)
    asked = request_for(traffic_class(0), now=loop.now)
    first.gate.pool.endpoints[1].draining = True
    first.arrives("running")
    spare = second.gate.spare(asked, avoid=frozenset({"e0"}))
    assert spare is not None
    assert spare.endpoint.name == "e1"
    first.arrives("waits")  # for the other endpoint only, as it happens
    assert second.gate.spare(asked, avoid=frozenset({"e0"})) is None


def test_bounds_hold_for_all_workers_together(gates):
    first, second, third = gates
    first.arrives("running")
    for story, name in ((first, "a"), (second, "b"), (third, "c")):
        story.arrives(name, 1)
    second.arrives("too many", 1)
    assert second.refusals["too many"].reason is Reason.QUEUE_FULL
    first.tasks["a"].cancel()
    first.loop.settle()
    second.arrives("fits", 1, body=Body(limit=1000, declared=90))
    third.arrives("too much", 1, body=Body(limit=1000, declared=20))
    assert third.refusals["too much"].reason is Reason.QUEUE_FULL
    assert [each.gate.depth(traffic_class(1)) for each in gates] == [0, 2, 1]


def test_who_gives_up_when_it_is_offered_a_place_leaves_it_to_the_next(gates, loop):
    first, second, third = gates
    first.arrives("running")
    second.arrives("gives up", 0)
    third.arrives("next", 1)
    first.places["running"].leave(Outcome.unused())
    second.tasks["gives up"].cancel()
    loop.settle()
    assert third.entered == ["next"]


def test_what_one_worker_may_not_use_another_does(crew, loop):
    """The first in order has found the free endpoint down."""
    first, second, _ = stories(crew, [pool_of(1, 1) for _ in range(3)], class_table_of(2), loop)
    first.gate.pool.endpoints[1].draining = True
    second.arrives("on one")
    second.arrives("on the other")
    assert {each.endpoint.name for each in second.places.values()} == {"e0", "e1"}
    first.arrives("better", 0)
    second.arrives("worse", 1)
    on_the_other = next(name for name, place in second.places.items() if place.endpoint.name == "e1")
    second.leaves(on_the_other)
    loop.settle()
    assert "worse" in second.entered
    assert first.entered == []


def test_what_a_killed_worker_held_goes_to_who_waits(gates, crew, loop):
    first, second, _ = gates
    first.arrives("dies")
    second.arrives("waits")
    crew.supervisor.clear_row(0)
    loop.settle()
    assert second.entered == ["waits"]


def test_after_a_change_of_classes_all_is_announced_anew(gates, crew, loop):
    first, second, _ = gates
    first.arrives("running", 3)
    second.arrives("waits", 3)
    for each in gates:
        each.gate.use_classes(class_table_of(2))
    line = crew.workers[2].line("digits")
    assert [(line.held(rank), line.waiting(rank)) for rank in range(4)] == [(0, 0), (1, 1), (0, 0), (0, 0)]
    first.leaves("running")
    loop.settle()
    assert second.entered == ["waits"]


class Patient(Endpoint):
    """Never takes silence for a failure, of which each worker has its own view."""

    def stuck(self, now: float) -> bool:
        return False


def patient_pool() -> Pool:
    endpoints = [Patient(f"e{n}", IdleBackend(), FixedLimit(slots)) for n, slots in enumerate((1, 2))]
    return Pool("digits", endpoints, least_in_flight)


@settings(stateful_step_count=30)
class AnyOrderOverWorkers(RuleBasedStateMachine):
    """Arrivals, departures, cancellations and time in three workers with three places at two endpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeTimeLoop()
        self.crew = Crew(3)
        self.gates = stories(self.crew, [patient_pool() for _ in range(3)], class_table_of(3), self.loop)
        self.ranks: dict[str, int] = {}
        self.count = 0
        self.waited: set[str] = set()

    def waiting(self) -> set[str]:
        return {name for each in self.gates for name, task in each.tasks.items() if not task.done()}

    def entered(self) -> set[str]:
        return {name for each in self.gates for name in each.entered}

    @rule(worker=st.integers(0, 2), rank=st.integers(0, 2), queue_s=st.sampled_from([0.3, 1.0, 1000.0]))
    def arrive(self, worker: int, rank: int, queue_s: float) -> None:
        name = str(self.count)
        self.count += 1
        self.ranks[name] = rank
        self.gates[worker].arrives(name, rank, settle=False, queue_s=queue_s, deadline=self.loop.now + 2000.0)

    @precondition(lambda self: any(each.places for each in self.gates))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        story = data.draw(st.sampled_from([each for each in self.gates if each.places]))
        story.places.pop(data.draw(st.sampled_from(sorted(story.places)))).leave(Outcome.unused())

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting())))
        next(each for each in self.gates if name in each.tasks).tasks[name].cancel()

    @rule(seconds=st.sampled_from([0.1, 0.5]))
    def time_passes(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule()
    def settle(self) -> None:
        """Wake-ups alone bring every free place to somebody, in order of ranks."""
        before = self.entered()
        for _ in range(4):
            self.loop.settle()
        held = sum(len(each.places) for each in self.gates)
        waiting = self.waiting()
        assert held == 3 or not waiting, "a place is free, and somebody waits"
        given = [self.ranks[name] for name in self.entered() - before if name in self.waited]
        still = [self.ranks[name] for name in waiting & self.waited]
        assert max(given, default=0) <= min(still, default=9), "overtaken"
        self.waited = waiting
        line = self.crew.workers[0].line("digits")
        for rank in range(3):
            assert line.waiting(rank) == sum(self.ranks[name] == rank for name in waiting)

    @invariant()
    def never_more_in_flight_than_places(self) -> None:
        for each in (0, 1):
            here = [story.gate.pool.endpoints[each] for story in self.gates]
            assert sum(endpoint.in_flight for endpoint in here) == here[0].busy <= here[0].slots

    def teardown(self) -> None:
        self.loop.finish()
        self.crew.close()


TestAnyOrderOverWorkers = AnyOrderOverWorkers.TestCase
