# SPDX-License-Identifier: Apache-2.0
"""Deadlines end what runs in them as `asyncio.timeout_at` does, and keep few entries of what is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.walk.deadlines import Deadline, Deadlines
from tests.fakes.fake_time import FakeTimeLoop


class Walks:
    """Walks that wait for ever, each until its instant, counted from the start."""

    def __init__(self) -> None:
        self.loop = FakeTimeLoop()
        self.deadlines = Deadlines(self.loop.time)
        self.start_s = self.loop.now
        self.limits: dict[str, Deadline] = {}
        self.ended: dict[str, float | str] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def _walk(self, name: str, until: float) -> None:
        try:
            with self.deadlines.until(self.start_s + until) as self.limits[name]:
                await asyncio.Event().wait()
        except TimeoutError:
            self.ended[name] = self.loop.now - self.start_s
        except asyncio.CancelledError:
            self.ended[name] = "cancelled"
            raise

    def start(self, name: str, until: float) -> None:
        self.tasks[name] = self.loop.create_task(self._walk(name, until))
        self.loop.settle()

    def move(self, name: str, until: float) -> None:
        self.loop.call_soon(self.limits[name].move, self.start_s + until)
        self.loop.settle()


@pytest.fixture
def walks() -> Iterator[Walks]:
    walks = Walks()
    yield walks
    walks.loop.finish()


def test_each_ends_at_its_own_instant(walks: Walks) -> None:
    for name, until in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("never", inf)):
        walks.start(name, until)
    for _ in range(8):
        walks.loop.advance(0.5)
    assert walks.ended == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_one_that_was_moved_later_ends_later(walks: Walks) -> None:
    walks.start("a", 1.0)
    walks.limits["a"].when = walks.start_s + 2.0
    walks.loop.advance(1.0)
    assert not walks.ended
    walks.loop.advance(1.0)
    assert walks.ended == {"a": 2.0}


def test_one_that_was_moved_earlier_ends_earlier(walks: Walks) -> None:
    walks.start("a", inf)
    walks.move("a", 3.0)
    walks.move("a", 1.0)
    walks.loop.advance(1.0)
    assert walks.ended == {"a": 1.0}


def test_one_that_was_moved_away_and_back_ends_in_time(walks: Walks) -> None:
    walks.start("a", 1.0)
    walks.limits["a"].when = inf
    walks.loop.advance(1.5)
    walks.move("a", 2.0)
    walks.loop.advance(0.5)
    assert walks.ended == {"a": 2.0}


def test_an_instant_that_has_passed_ends_the_first_wait(walks: Walks) -> None:
    walks.start("a", -1.0)
    walks.loop.advance(0.0)
    assert walks.ended == {"a": 0.0}


def test_a_client_that_leaves_is_no_timeout(walks: Walks) -> None:
    walks.start("a", 1.0)
    walks.tasks["a"].cancel()
    walks.loop.advance(1.0)
    assert walks.ended == {"a": "cancelled"}


def test_a_client_that_leaves_in_the_moment_of_the_deadline_is_no_timeout(walks: Walks) -> None:
    walks.start("a", 1.0)
    walks.limits["a"].expire()
    walks.tasks["a"].cancel()
    walks.loop.settle()
    assert walks.ended == {"a": "cancelled"}


def test_a_walk_that_ends_as_its_time_does_leaves_no_cancellation_behind(walks: Walks) -> None:
    async def walk() -> int:
        with walks.deadlines.until(walks.start_s) as limit, suppress(asyncio.CancelledError):
            limit.expire()
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert walks.loop.run_until_complete(walk()) == 0


def test_another_failure_stays_what_it_is(walks: Walks) -> None:
    async def walk() -> None:
        with walks.deadlines.until(walks.start_s):
            raise ValueError

    with pytest.raises(ValueError):
        walks.loop.run_until_complete(walk())


def test_walks_that_are_over_leave_few_entries(walks: Walks) -> None:
    async def walk(until: float) -> None:
        with walks.deadlines.until(until):
            pass

    for number in range(1000):
        walks.loop.run_until_complete(walk(walks.start_s + 100.0 + number))
    assert int(repr(walks.deadlines).split()[-2]) <= 64


TICKS = 8
Plan = tuple[int, dict[int, int]]
"""In ticks: until when at first, and the moves: when, and until when from then on."""
INSTANTS = st.integers(0, TICKS)


@given(st.lists(st.tuples(INSTANTS, st.dictionaries(INSTANTS, INSTANTS, max_size=4)), max_size=5))
def test_whatever_is_moved_when_each_ends_as_a_look_at_every_tick_would_end_it(plans: list[Plan]) -> None:
    walks = Walks()
    model: dict[str, float | str] = {}
    until = {str(number): first for number, (first, _) in enumerate(plans)}
    try:
        for name, first in until.items():
            walks.start(name, first)
        for tick in range(TICKS + 1):
            walks.loop.advance(walks.start_s + tick - walks.loop.now)
            model |= {name: float(tick) for name, end in until.items() if end <= tick and name not in model}
            for number, (_, moves) in enumerate(plans):
                if tick in moves and str(number) not in model:
                    until[str(number)] = moves[tick]
                    walks.move(str(number), moves[tick])
            walks.loop.advance(0.0)
            model |= {name: float(tick) for name, end in until.items() if end <= tick and name not in model}
        assert walks.ended == model
    finally:
        walks.loop.finish()
