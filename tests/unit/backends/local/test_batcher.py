# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.local.batcher import Batcher, Entry


def entry(rows=1, *, rank=0, arrival=0.0, key="same", deadline=100.0) -> Entry:
    return Entry(rows=rows, key=key, rank=rank, arrival=arrival, deadline=deadline)


def batcher_of(*entries: Entry, max_size=4, max_wait_s=0.0) -> Batcher[Entry]:
    batcher: Batcher[Entry] = Batcher(max_size=max_size, max_wait_s=max_wait_s)
    for each in entries:
        batcher.add(each)
    return batcher


def test_nobody_waiting_is_no_batch():
    batcher = batcher_of()
    assert batcher.take_batch(0.0) == []
    assert batcher.due() is None


def test_those_who_wait_together_go_together_in_their_order():
    first, second, third = entry(arrival=1.0), entry(arrival=2.0), entry(arrival=3.0)
    batcher = batcher_of(third, first, second)
    assert batcher.take_batch(3.0) == [first, second, third]
    assert len(batcher) == 0


def test_a_better_class_goes_before_earlier_arrivals():
    early, better = entry(rank=1, arrival=1.0), entry(rank=0, arrival=2.0)
    assert batcher_of(early, better, max_size=1).take_batch(2.0) == [better]


def test_rows_are_counted_not_requests():
    first, second, third = entry(2, arrival=1.0), entry(2, arrival=2.0), entry(1, arrival=3.0)
    batcher = batcher_of(first, second, third)
    assert batcher.take_batch(3.0) == [first, second]
    assert batcher.take_batch(3.0) == [third]


def test_one_that_does_not_fit_is_not_overtaken_by_a_smaller_one():
    first, large, small = entry(2, arrival=1.0), entry(3, arrival=2.0), entry(1, arrival=3.0)
    batcher = batcher_of(first, large, small)
    assert batcher.take_batch(3.0) == [first]
    assert batcher.take_batch(3.0) == [large, small]


def test_a_request_larger_than_a_batch_runs_alone():
    large, small = entry(9, arrival=1.0), entry(1, arrival=2.0)
    batcher = batcher_of(large, small, max_wait_s=10.0)
    assert batcher.take_batch(1.0) == [large]
    assert batcher.take_batch(1.0) == []


def test_unequal_shapes_never_meet():
    first, other, second = entry(arrival=1.0), entry(arrival=2.0, key="other"), entry(arrival=3.0)
    batcher = batcher_of(first, other, second)
    assert batcher.take_batch(3.0) == [first, second]
    assert batcher.take_batch(3.0) == [other]


def test_a_batch_that_is_not_full_waits_for_company():
    first = entry(arrival=1.0)
    batcher = batcher_of(first, max_wait_s=0.5)
    assert batcher.due() == 1.5
    assert batcher.take_batch(1.49) == []
    assert batcher.take_batch(1.5) == [first]


def test_a_full_batch_waits_for_nobody():
    entries = [entry(arrival=1.0) for _ in range(4)]
    assert batcher_of(*entries, max_wait_s=10.0).take_batch(1.0) == entries


def test_the_longest_waiting_of_a_batch_decides_when_it_goes():
    patient, better = entry(rank=1, arrival=1.0), entry(rank=0, arrival=1.4)
    batcher = batcher_of(patient, better, max_wait_s=0.5)
    assert batcher.due() == 1.5
    assert batcher.take_batch(1.5) == [better, patient]


def test_a_batch_does_not_go_ahead_of_a_better_request_that_still_waits():
    full = [entry(rank=1, arrival=1.0) for _ in range(4)]
    better = entry(rank=0, arrival=1.2, key="other")
    batcher = batcher_of(*full, better, max_wait_s=0.5)
    assert batcher.take_batch(1.2) == []
    assert batcher.due() == 1.7
    assert batcher.take_batch(1.7) == [better]
    assert batcher.take_batch(1.7) == full


def test_who_leaves_is_forgotten():
    gone, stays = entry(), entry()
    batcher = batcher_of(gone, stays)
    batcher.discard(gone)
    batcher.discard(gone)
    assert batcher.take_batch(0.0) == [stays]


def test_a_passed_deadline_ends_the_waiting():
    late, early = entry(deadline=1.0), entry(deadline=2.0)
    batcher = batcher_of(late, early)
    assert batcher.take_expired(1.0) == [late]
    assert batcher.take_all() == [early]
    assert len(batcher) == 0


def test_it_tells_its_condition():
    assert repr(batcher_of(entry(2), entry(1))) == "<Batcher 2 waiting, 3 rows, max 4>"


ENTRIES = st.lists(
    st.builds(
        entry,
        st.integers(1, 6),
        rank=st.integers(0, 2),
        arrival=st.floats(0, 10),
        key=st.sampled_from("ab"),
        deadline=st.floats(5, 20),
    ),
    max_size=20,
)


@given(ENTRIES, st.integers(1, 8), st.floats(0, 3))
def test_everybody_goes_once_in_batches_that_hold_together(entries, max_size, max_wait_s):
    batcher = batcher_of(*entries, max_size=max_size, max_wait_s=max_wait_s)
    gone: list[Entry] = []
    while (due := batcher.due()) is not None:
        waiting = [each for each in entries if each not in gone]
        batch = batcher.take_batch(due)
        assert batch[0].order == min(each.order for each in waiting)
        assert [each.order for each in batch] == sorted(each.order for each in batch)
        assert len({each.key for each in batch}) == 1
        assert len(batch) == 1 or sum(each.rows for each in batch) <= max_size
        gone += batch
    assert len(gone) == len(entries) == len(set(map(id, gone)))


@given(ENTRIES, st.floats(0, 25))
def test_whoever_is_left_is_in_time(entries, now):
    batcher = batcher_of(*entries)
    expired = batcher.take_expired(now)
    assert all(each.deadline <= now for each in expired)
    assert all(each.deadline > now for each in batcher.take_all())


@pytest.mark.parametrize("waited", [0.0, 0.25, 0.5])
def test_nobody_waits_for_company_beyond_the_longest_wait(waited):
    batcher = batcher_of(entry(arrival=0.0), max_wait_s=0.5)
    assert bool(batcher.take_batch(waited)) == (waited >= 0.5)
