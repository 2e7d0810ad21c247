# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from qos.admission import latest_start, retry_after_s, to_evict, too_late

seconds = st.floats(0, 1e4, allow_nan=False)


@dataclass
class Held:
    name: str
    rank: int
    evicted: bool = False


# Deadlines


def test_the_backend_and_the_way_take_their_part_of_a_deadline():
    assert latest_start(10.0, expected_s=2.0, rtt_s=0.5) == 7.5
    assert latest_start(10.0, expected_s=None, rtt_s=0.5) == 9.5
    assert latest_start(10.0, expected_s=None, rtt_s=None) == 10.0


def test_what_cannot_be_answered_in_time_is_refused_unless_it_is_the_only_one_to_measure():
    assert too_late(7.6, 7.5, class_in_flight=1)
    assert not too_late(7.6, 7.5, class_in_flight=0)
    assert not too_late(7.4, 7.5, class_in_flight=9)


# Eviction


def test_the_newest_of_the_lowest_class_goes_first():
    held = [Held("old", 3), Held("batch", 2), Held("new", 3)]
    assert [each.name for each in to_evict([0], held)] == ["new"]
    assert [each.name for each in to_evict([0, 0, 0, 0], held)] == ["new", "old", "batch"]


def test_nobody_goes_for_its_own_class_or_a_lower_one():
    held = [Held("batch", 2)]
    assert to_evict([2, 3], held) == []
    assert to_evict([3, 1], held) == held


def test_who_is_on_the_way_out_makes_room_for_one_already():
    held = [Held("going", 3, evicted=True), Held("stays", 3)]
    assert to_evict([0], held) == []
    assert [each.name for each in to_evict([0, 1], held)] == ["stays"]


@given(
    st.lists(st.integers(0, 4), max_size=20),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20),
)
def test_no_more_go_than_wait_and_each_for_a_higher_class(waiting, held):
    places = [Held(str(number), rank, evicted) for number, (rank, evicted) in enumerate(held)]
    chosen = to_evict(waiting, places)
    leaving = sum(each.evicted for each in places)
    assert len({each.name for each in chosen}) == len(chosen) <= max(0, len(waiting) - leaving)
    served = sorted(waiting)[leaving:]
    assert all(not each.evicted and each.rank > rank for each, rank in zip(chosen, served, strict=False))
    kept = [each for each in places if each not in chosen and not each.evicted]
    if chosen and kept:
        assert min(each.rank for each in chosen) >= max(each.rank for each in kept)


# When to come back


def test_a_newcomer_waits_for_those_before_it():
    assert retry_after_s(7, 4, 0.5, longest_s=60.0) == 1.0
    assert retry_after_s(0, 4, None, longest_s=2.0) == 2.0


@given(st.integers(0, 10**6), st.integers(0, 1000), st.none() | seconds, st.floats(0, 1e4) | st.just(inf))
def test_nobody_is_sent_away_for_too_long_or_no_time(ahead, places, expected_s, longest_s):
    assert 0.01 <= retry_after_s(ahead, places, expected_s, longest_s=longest_s) <= 5.0
