# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is over workers: as one gate with all of them would have decided."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from backends.ledger.turns import next_row, turn_of
from qos.scheduler import MOST_PASSED_OVER, ClassBounds, ClassQueues, Turns, took_turn


def test_nobody_waits():
    assert turn_of([Turns(0.0), Turns(0.0)], [[], []], [0, 0], 1) is None


def test_the_higher_rank_goes_first_wherever_it_waits():
    assert turn_of([Turns(0.0), Turns(0.0)], [[3], [0, 1]], [0, 0], 1) == (0, [3])


def test_a_lone_rank_needs_no_rule():
    assert turn_of([Turns(0.0), Turns(0.0)], [[], [0, 1]], [0, 9], 1) == (1, [0, 1])


def test_in_one_rank_the_row_that_had_least_goes_first_and_of_equals_the_one_that_waits_longest():
    assert next_row([0, 1, 2], [1.0, 0.5, 0.5], [0.0, 8.0, 7.0]) == 2
    assert next_row([1], [0.0, 9.0], [0.0, 9.0]) == 1


@given(
    shares=st.lists(st.sampled_from([0.0, 0.2, 0.5]), min_size=2, max_size=4),
    held=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    places=st.integers(1, 40),
    rows=st.data(),
)
def test_the_rank_is_the_one_that_a_single_gate_would_choose(shares, held, places, rows):
    """Turn after turn, with everything that waits in other rows."""
    where = [rows.draw(st.lists(st.integers(0, 3), unique=True)) for _ in shares]
    queues: ClassQueues[None] = ClassQueues([ClassBounds(each, 9, 9) for each in shares], max_entries=99, max_bytes=99)
    for rank, each in enumerate(where):
        if each:
            queues.offer(None, rank=rank, client="c", due=1.0, size=0, leaves=9.0)
    turns = [Turns(each) for each in shares]
    for _ in range(3 * MOST_PASSED_OVER):
        expected = queues.first(held, places)
        found = turn_of(turns, where, held, places)
        assert (None if found is None else found[0]) == (None if expected is None else expected.rank)
        if found is None or expected is None:
            return
        took_turn(turns, [bool(each) for each in where], found[0])
        queues.serve(expected, 0.0)
        queues.offer(None, rank=expected.rank, client="c", due=1.0, size=0, leaves=9.0)


def test_one_worker_of_only_the_highest_class_leaves_the_floor_to_one_of_only_the_lowest():
    turns, had = [Turns(0.0) for _ in range(4)], Counter()
    for _ in range(3_300):
        found = turn_of(turns, [[0], [], [], [1]], [1, 0, 0, 0], 1)
        assert found is not None
        had[found[0]] += 1
        took_turn(turns, [True, False, False, True], found[0])
    assert had == {0: 3_200, 3: 100}
