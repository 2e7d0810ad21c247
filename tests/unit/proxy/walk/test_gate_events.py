# SPDX-License-Identifier: Apache-2.0
"""Any order of arrivals, departures, cancellations and time at a gate: nobody is lost, overtaken or kept too long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backends.body import Body
from backends.endpoint import Endpoint
from backends.messages import Request
from backends.outcome import Outcome
from inferlane.errors import Reason, Refused
from proxy.walk.gate import Gate, Place
from tests.fakes.endpoints import class_table_of, pool_of, request_for, traffic_class
from tests.fakes.fake_time import FakeTimeLoop


@dataclass(eq=False)
class Visitor:
    order: int
    request: Request
    leaves: float = 0.0
    refused: tuple[Reason, float] | None = None
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[float, ...]:
        of = self.request.traffic_class
        return of.rank, self.request.timeline.received + of.deadline_s, self.order

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
        self.gate = Gate(
            self.pool, class_table_of(3), max_requests=self.MOST, max_bytes=self.BYTES, clock=self.loop.time
        )
        self.visitors: list[Visitor] = []
        self.inside: dict[Visitor, Place] = {}
        self.grants: list[Visitor] = []
        self.waiting_before: list[Visitor] = []
        self.settled = True

    def takes(self, endpoint: Endpoint) -> bool:
        """One that was silent for long gets nothing while another is there, though it has a place."""
        return endpoint.free(self.loop.now) and not endpoint.stuck(self.loop.now)

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
        self.inside.pop(visitor).leave(Outcome.unused())
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
        assert not waiting or not any(map(self.takes, self.pool.endpoints)), "a wake-up was lost"
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
                    assert visitor.request.deadline <= when  # its queue's time may have ended unnoticed before
                case refused:
                    assert refused is None or refused[0] in (Reason.QUEUE_FULL, Reason.EVICTED)

    def teardown(self) -> None:
        self.loop.finish()
        for place in self.inside.values():
            place.leave(Outcome.unused())
        assert all(each.in_flight == 0 for each in self.pool.endpoints)
        assert len(self.gate._queues) == 0
        assert not self.gate._growing


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
