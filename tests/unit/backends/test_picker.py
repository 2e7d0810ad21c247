# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.picker import PICKERS, Picker, least_in_flight, round_robin


@dataclass
class Place:
    """An endpoint as the picker sees it."""

    in_flight: int = 0
    free: bool = True


places = st.lists(st.builds(Place, in_flight=st.integers(0, 3), free=st.booleans()), max_size=8)
turns = st.integers(0, 8)


def test_they_are_found_by_their_names_in_the_config():
    assert list(PICKERS.items()) == [("round_robin", round_robin), ("least_in_flight", least_in_flight)]


def test_round_robin_goes_round():
    endpoints = [Place(), Place(in_flight=9), Place(free=False), Place()]
    assert [round_robin(endpoints, turn) for turn in range(5)] == [0, 1, 3, 3, 0]


def test_least_in_flight_takes_the_emptiest():
    assert least_in_flight([Place(2), Place(0, free=False), Place(1), Place(3)], 0) == 2


def test_least_in_flight_takes_equals_in_turn():
    assert [least_in_flight([Place(1), Place(0), Place(0)], turn) for turn in range(4)] == [1, 1, 2, 1]


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
@given(endpoints=places, turn=turns)
def test_a_free_one_is_picked_if_there_is_any(pick: Picker, endpoints, turn):
    picked = pick(endpoints, turn)
    if any(each.free for each in endpoints):
        assert picked is not None
        assert endpoints[picked].free
    else:
        assert picked is None


@given(endpoints=places, turn=turns)
def test_least_in_flight_leaves_no_emptier_one(endpoints, turn):
    picked = least_in_flight(endpoints, turn)
    if picked is not None:
        assert endpoints[picked].in_flight == min(each.in_flight for each in endpoints if each.free)


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
@given(free=st.lists(st.booleans(), min_size=1, max_size=6), rounds=st.integers(1, 5))
def test_equals_get_equal_shares(pick: Picker, free, rounds):
    endpoints = [Place(free=each) for each in free]
    shares: Counter[int] = Counter()
    turn = 0
    for _ in range(rounds * sum(free)):
        index = pick(endpoints, turn)
        assert index is not None
        shares[index] += 1
        turn = index + 1
    assert set(shares.values()) <= {rounds}
