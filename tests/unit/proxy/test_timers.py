# SPDX-License-Identifier: Apache-2.0
"""The heap rings every key at its newest moment, never early, never twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.timers import TimerHeap

MOMENTS = st.one_of(st.none(), st.integers(0, 20).map(float))


def test_moving_later_rings_later() -> None:
    heap: TimerHeap[str] = TimerHeap()
    heap.set("a", 1.0)
    heap.set("a", 5.0)
    assert heap.pop_due(1.0) == []
    assert heap.next() == 5.0
    assert heap.pop_due(5.0) == ["a"]
    assert heap.next() is None


def test_moving_earlier_rings_earlier_and_once() -> None:
    heap: TimerHeap[str] = TimerHeap()
    heap.set("a", 5.0)
    heap.set("a", 1.0)
    assert heap.pop_due(1.0) == ["a"]
    assert heap.pop_due(9.0) == []


def test_none_takes_a_key_away() -> None:
    heap: TimerHeap[str] = TimerHeap()
    heap.set("a", 1.0)
    heap.set("a", None)
    assert len(heap) == 0
    assert heap.pop_due(2.0) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), MOMENTS), max_size=40), st.integers(0, 20))
def test_like_a_plain_dictionary(moves: list[tuple[str, float | None]], now: int) -> None:
    heap: TimerHeap[str] = TimerHeap()
    model: dict[str, float] = {}
    for key, when in moves:
        heap.set(key, when)
        if when is None:
            model.pop(key, None)
        else:
            model[key] = when
    due = heap.pop_due(float(now))
    assert sorted(due) == sorted(key for key, when in model.items() if when <= now)
    assert len(heap) == len(model) - len(due)
    assert heap.next() == min((when for when in model.values() if when > now), default=None)
