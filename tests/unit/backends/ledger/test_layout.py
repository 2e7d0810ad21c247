# SPDX-License-Identifier: Apache-2.0
"""The arrangement of words: none is used twice, and none lies outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ledger.layout import HEADER, RANKS, Layout


@given(st.builds(Layout, st.integers(1, 64), st.integers(1, 3), st.integers(1, 3)))
def test_every_word_has_one_meaning_and_lies_inside(layout):
    used = list(range(HEADER)) + [layout.absent + row for row in range(layout.rows)]
    for index in range(layout.pools):
        pool = layout.pool(index)
        used += range(pool, pool + 3)
        for array in (
            layout.users,
            layout.nudged,
            layout.seen,
            layout.waiting_in_all,
            layout.sheds,
            layout.leaving,
        ):
            used += [array(pool) + row for row in range(layout.rows)]
        used += [layout.freed(pool) + row for row in range(layout.rows + 1)]
        for rank in range(RANKS):
            first = layout.rank(pool, rank)
            used += range(first, first + 3)
            used += [layout.by_row(first, which) + row for which in range(6) for row in range(layout.rows)]
    for index in range(layout.columns):
        column = layout.column(index)
        used += range(column, column + 4)
        used += [
            array(column) + row for array in (layout.column_users, layout.column_held) for row in range(layout.rows)
        ]
    assert len(used) == len(set(used))
    assert max(used) < layout.bytes // 8


@pytest.mark.parametrize("sizes", [(0, 1, 1), (65, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_ledger_of_nothing_or_of_too_many_is_refused(sizes):
    with pytest.raises(ValueError, match="no ledger"):
        Layout(*sizes)
