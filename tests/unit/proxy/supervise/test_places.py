# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.supervise.places import free_range


def test_two_banks_take_turns() -> None:
    assert free_range([], 2) == range(2)
    assert free_range([range(2)], 2) == range(2, 4)
    assert free_range([range(2, 4)], 2) == range(2)
    assert free_range([range(2, 4)], 3) == range(4, 7)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=4), st.integers(1, 64))
def test_nobody_has_it_already(taken: list[tuple[int, int]], count: int) -> None:
    ranges = [range(first, first + length) for first, length in taken]
    found = free_range(ranges, count)
    assert len(found) == count
    assert not any({*found} & {*each} for each in ranges)
