# SPDX-License-Identifier: Apache-2.0
"""A reply that stands still is let go of in time, one that moves never, whatever others do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.untaken import UNTAKEN_S, Untaken


def test_one_that_stands_still_is_told_once_and_one_that_moves_is_not() -> None:
    untaken, told, moved = Untaken(), [], 0
    for second in range(200):
        moved += 10
        waiting = [(4, moved)] if told else [(0, 7), (4, moved)]
        told += [(second, each) for each in untaken.look(waiting, float(second))]
    assert told == [(UNTAKEN_S, 0)]


def test_one_that_comes_back_under_its_number_begins_anew() -> None:
    untaken = Untaken()
    untaken.look([(0, 0)], 0.0)
    untaken.look([], 30.0)
    assert untaken.look([(0, 0)], 70.0) == []


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, 40.0)), max_size=30))
def test_nobody_is_told_before_its_time(steps: list[tuple[int, float]]) -> None:
    """Some bytes are acknowledged, then time passes: told exactly when nothing was for long enough."""
    untaken, now, first, since = Untaken(), 0.0, 0, 0.0
    untaken.look([(0, 0)], now)
    for acknowledged, passes in steps:
        now += passes
        if acknowledged:
            first, since = first + acknowledged, now
        late = untaken.look([(0, first)], now)
        assert late == ([0] if now - since >= UNTAKEN_S else [])
        if late:
            return
