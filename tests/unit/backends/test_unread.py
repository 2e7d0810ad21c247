# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.unread import Unread


@given(st.lists(st.integers(0, 40), max_size=30))
def test_no_more_than_the_most_is_taken_and_all_of_it_comes_back(counts: list[int]):
    unread = Unread(100)
    taken = []
    for count in counts:
        fits = sum(taken) + count <= 100
        assert unread.take(count) is fits
        taken += [count] if fits else []
        assert unread.bytes == sum(taken)
    for count in taken:
        unread.give(count)
    assert unread.bytes == 0
    assert "0 of 100" in repr(unread)
