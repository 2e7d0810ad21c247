# SPDX-License-Identifier: Apache-2.0
"""Marks by class and by listener, obeyed at once after a reload; a higher class's mark is lent at its police rate."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from proxy.listeners.marks import Marks, slices
from qos.connection_mark import ConnectionMark
from qos.marking import Mark
from qos.traffic_class import ClassTable, TrafficClass

REALTIME = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=1.0, queue_s=1.0, priority=6, police=8_000_000)
DEFAULT = TrafficClass(name="interactive", rank=1, dscp=18, deadline_s=1.0, queue_s=1.0, priority=4)
BATCH = TrafficClass(name="batch", rank=2, dscp=10, deadline_s=1.0, queue_s=1.0)
LISTENERS = {"fast": "realtime", "main": None}
CLASSES = ClassTable([REALTIME, DEFAULT, BATCH], DEFAULT)
BURST = 20_000
"""Of realtime's bucket: 20 ms at 1 MB/s."""
LONG_S = 20.0


def marks_of(classes: ClassTable = CLASSES) -> Marks:
    return Marks(classes, LISTENERS, clock=time.monotonic)


def connection(*requests: TrafficClass, marks: Marks) -> ConnectionMark:
    mark = ConnectionMark()
    for each in requests:
        marks.judged(mark, each)
    return mark


def test_a_listener_s_mark_is_that_of_its_max_class_or_of_the_default_class() -> None:
    marks = marks_of()
    assert (marks.at("fast"), marks.at("main")) == (Mark(46, 6), Mark(18, 4))
    assert marks.datagram("fast", None) == Mark(46, 6)
    assert marks.datagram("fast", "batch") == Mark(10, 0)


def test_a_connection_s_mark_is_its_listener_s_until_its_first_request() -> None:
    marks = marks_of()
    assert marks.connection("fast", connection(marks=marks)) == Mark(46, 6)
    assert marks.connection("fast", connection(BATCH, marks=marks)) == Mark(10, 0)
    assert marks.connection("fast", connection(BATCH, DEFAULT, REALTIME, marks=marks)) == Mark(18, 4)


def test_a_reload_reaches_connections_that_live() -> None:
    marks = marks_of()
    fresh, old = connection(marks=marks), connection(BATCH, marks=marks)
    bleak = replace(BATCH, dscp=1, priority=2)
    marks.replace(ClassTable([REALTIME, DEFAULT, bleak], DEFAULT), {"fast": "batch", "main": None})
    assert marks.connection("fast", fresh) == marks.connection("fast", old) == Mark(1, 2)


def test_what_a_reload_took_away_gets_the_default_class() -> None:
    marks = marks_of()
    old = connection(BATCH, marks=marks)
    marks.replace(ClassTable([REALTIME, DEFAULT], DEFAULT), {"main": None})
    assert marks.connection("fast", old) == marks.at("fast") == Mark(18, 4)
    assert not marks.polices(old, "batch")


@pytest.mark.parametrize(
    ("requests", "served", "polices"),
    [
        ([], "batch", False),
        ([REALTIME], "realtime", False),
        ([REALTIME], "batch", True),
        ([BATCH, REALTIME], "batch", True),
        ([BATCH], "realtime", False),
        ([DEFAULT], "batch", False),  # interactive has no police rate
    ],
)
def test_who_rides_a_higher_mark_is_policed(requests: list[TrafficClass], served: str, polices: bool) -> None:
    marks = marks_of()
    assert marks.polices(connection(*requests, marks=marks), served) is polices


@pytest.mark.parametrize(
    ("requests", "served", "may"),
    [
        ([BATCH], "batch", True),
        ([DEFAULT], "batch", True),
        ([DEFAULT], "realtime", False),
        ([BATCH, DEFAULT], "batch", False),  # it has risen, and will not again
        ([REALTIME], "batch", False),  # it is policed already
        ([], "batch", False),
    ],
)
def test_who_may_come_to_ride_a_higher_mark_is_known_before(
    requests: list[TrafficClass], served: str, may: bool
) -> None:
    marks = marks_of()
    assert marks.may_police(connection(*requests, marks=marks), served) is may
    unlimited = marks_of(ClassTable([replace(REALTIME, police=None), DEFAULT, BATCH], DEFAULT))
    assert not unlimited.may_police(connection(*requests, marks=unlimited), served)


async def test_what_is_over_the_rate_waits_and_the_class_itself_does_not() -> None:
    marks = marks_of(ClassTable([replace(REALTIME, police=8), DEFAULT, BATCH], DEFAULT))
    lent = connection(REALTIME, marks=marks)
    await marks.admit(lent, "batch", 16_384)
    waiting = asyncio.create_task(marks.admit(lent, "batch", 1))
    also = asyncio.create_task(marks.admit(connection(REALTIME, marks=marks), "batch", 1))  # one bucket for all
    async with asyncio.timeout(LONG_S):
        await marks.admit(lent, "realtime", 1 << 30)
        await marks.admit(connection(BATCH, marks=marks), "batch", 1 << 30)
    assert not waiting.done()
    assert not also.done()
    waiting.cancel()
    also.cancel()


async def test_one_that_gives_up_takes_nothing_and_the_next_one_has_its_turn() -> None:
    marks = marks_of()
    lent = connection(REALTIME, marks=marks)
    await marks.admit(lent, "batch", BURST + 1_000_000)  # a second of debt
    first = asyncio.create_task(marks.admit(lent, "batch", 1 << 30))
    second = asyncio.create_task(marks.admit(lent, "batch", 1))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(LONG_S):
        await second


async def test_what_does_not_wait_overtakes_nobody_and_leaves_no_debt() -> None:
    marks = marks_of(ClassTable([replace(REALTIME, police=8), DEFAULT, BATCH], DEFAULT))
    lent = connection(REALTIME, marks=marks)
    assert marks.spares(lent, "realtime", 1 << 30)
    assert marks.spares(lent, "batch", 16_000)
    assert not any(marks.spares(lent, "batch", 16_000) for _ in range(1000))
    async with asyncio.timeout(LONG_S):
        await marks.admit(lent, "batch", 100)  # what is left of the bucket, whatever was asked for meanwhile
    waiting = asyncio.create_task(marks.admit(lent, "batch", 16_384))
    await asyncio.sleep(0)
    assert not marks.spares(lent, "batch", 1)
    waiting.cancel()


async def test_a_reload_s_rate_counts_at_once() -> None:
    marks = marks_of(ClassTable([replace(REALTIME, police=8), DEFAULT, BATCH], DEFAULT))
    lent = connection(REALTIME, marks=marks)
    await marks.admit(lent, "batch", 1 << 20)
    waiting = asyncio.create_task(marks.admit(lent, "batch", BURST))
    await asyncio.sleep(0)
    marks.replace(CLASSES, LISTENERS)
    async with asyncio.timeout(LONG_S):
        await marks.admit(lent, "batch", BURST)
        await waiting


async def test_all_who_wait_go_at_once_when_a_reload_lifts_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = 0

    async def sleep(_: float) -> None:
        nonlocal slept
        slept += 1
        await nap(0)

    nap = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", sleep)
    marks = marks_of(ClassTable([replace(REALTIME, police=8), DEFAULT, BATCH], DEFAULT))
    lent = connection(REALTIME, marks=marks)
    await marks.admit(lent, "batch", 1 << 20)
    waiting = [asyncio.create_task(marks.admit(lent, "batch", BURST)) for _ in range(20)]
    await nap(0)
    marks.replace(ClassTable([replace(REALTIME, police=None), DEFAULT, BATCH], DEFAULT), LISTENERS)
    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*waiting)
    assert slept == 1  # the first of them, before the reload


async def test_slices_are_the_whole_body() -> None:
    body = bytes(range(256)) * 200
    parts = [each async for each in slices(body)]
    assert b"".join(parts) == body
    assert max(map(len, parts)) == 16_384
    assert [each async for each in slices(b"")] == []
