# SPDX-License-Identifier: Apache-2.0
"""The gate when a reload adds, removes or reorders classes while requests wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from backends.outcome import Outcome
from inferlane.errors import Refused
from proxy.walk.gate import Gate
from qos.traffic_class import ClassTable
from tests.fakes.endpoints import class_table_of, pool_of, request_for, traffic_class
from tests.fakes.fake_time import FakeTimeLoop


def test_who_waits_keeps_its_promise_and_has_its_turn_by_the_new_order():
    """`traffic_class(2)` is named rank-2: here a class that keeps its name, but not its place."""
    loop = FakeTimeLoop()
    gate = Gate(pool_of(1), class_table_of(4), clock=loop.time)
    entered: list[str] = []

    async def enters(name: str, rank: int, queue_s: float) -> None:
        places.append(await gate.enter(request_for(traffic_class(rank, queue_s=queue_s), now=loop.now)))
        entered.append(name)

    places = [loop.run_until_complete(gate.enter(request_for(traffic_class(0), now=loop.now)))]
    for name, rank in (("second", 1), ("gone", 3), ("third", 2)):
        loop.create_task(enters(name, rank, 1.0))
    late = loop.create_task(enters("late", 3, 0.5))
    loop.settle()
    turned = [replace(traffic_class(old, queue_s=9.0), rank=new) for new, old in enumerate((2, 1, 0))]
    gate.use_classes(ClassTable(turned, turned[1]))
    assert [gate.depth(each) for each in turned] == [1, 1, 2]
    judged_before = loop.create_task(enters("judged before", 2, 1.0))
    loop.settle()
    assert [gate.depth(each) for each in turned] == [2, 1, 2]
    loop.advance(0.6)
    with pytest.raises(Refused, match=r"0\.5 s that class rank-3 waits"):
        late.result()
    for _ in range(4):
        places[-1].leave(Outcome.unused())
        loop.settle()
    assert judged_before.done()
    assert entered == ["third", "judged before", "second", "gone"]
    loop.finish()


async def test_with_nobody_waiting_nothing_happens():
    gate = Gate(pool_of(1), class_table_of(2))
    only = traffic_class(0)
    gate.use_classes(ClassTable([only], only))
    async with asyncio.timeout(1):
        place = await gate.enter(request_for(only, now=asyncio.get_running_loop().time()))
    place.leave(Outcome.unused())


def test_places_count_for_their_class_however_often_the_number_of_classes_changes():
    loop = FakeTimeLoop()
    gate = Gate(pool_of(2), class_table_of(3), clock=loop.time)
    place = loop.run_until_complete(gate.enter(request_for(traffic_class(2), now=loop.now)))
    counts = []
    for ranks in (2, 3):
        gate.use_classes(class_table_of(ranks))
        counts.append([gate.in_flight(each) for each in class_table_of(ranks)])
    assert counts == [[0, 1], [0, 0, 1]]
    turned = [replace(traffic_class(old), rank=new) for new, old in enumerate((2, 1, 0))]
    gate.use_classes(ClassTable(turned, turned[0]))
    assert [gate.in_flight(each) for each in turned] == [1, 0, 0]
    place.leave(Outcome.unused())
    assert [gate.in_flight(each) for each in turned] == [0, 0, 0]
    loop.finish()
