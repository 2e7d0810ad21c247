# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.choosing.picker import PICKERS, Context, Picker, least_in_flight, least_latency, round_robin


@dataclass
class Place:
    """An endpoint as the picker sees it."""

    in_flight: int = 0
    slots: int = 4
    expected: float | None = 0.1
    failed: bool = False
    name: str = ""

    @property
    def busy(self) -> int:
        return self.in_flight

    def has_room(self, now: float) -> bool:
        return self.in_flight < self.slots

    def expected_s(self, now: float) -> float | None:
        return self.expected

    def penalised(self, now: float) -> bool:
        return self.failed


places = st.lists(
    st.builds(
        Place,
        in_flight=st.integers(0, 8),
        slots=st.integers(1, 8),
        expected=st.one_of(st.none(), st.floats(1e-3, 10.0)),
        failed=st.booleans(),
        name=st.sampled_from("abcd"),
    ),
    max_size=12,
)
turns = st.integers(0, 12)
avoided = st.frozensets(st.sampled_from("abcd"))


def at(turn: int = 0, avoid: frozenset[str] = frozenset()) -> Context:
    return Context(0.0, random.Random(0), turn, avoid=avoid)


def test_they_are_found_by_their_names_in_the_config():
    assert list(PICKERS.items()) == [
        ("least_latency", least_latency),
        ("round_robin", round_robin),
        ("least_in_flight", least_in_flight),
    ]


def test_round_robin_goes_round():
    endpoints = [Place(), Place(in_flight=3), Place(in_flight=4), Place()]
    assert [round_robin(endpoints, at(turn)) for turn in range(5)] == [0, 1, 3, 3, 0]


def test_least_in_flight_takes_the_emptiest():
    assert least_in_flight([Place(2), Place(4), Place(1), Place(3)], at()) == 2


def test_least_in_flight_takes_equals_in_turn():
    assert [least_in_flight([Place(1), Place(0), Place(0)], at(turn)) for turn in range(4)] == [1, 1, 2, 1]


def test_least_latency_takes_the_fastest():
    assert least_latency([Place(expected=0.2), Place(expected=0.05), Place(expected=0.1)], at()) == 1


def test_least_latency_counts_what_was_sent_since():
    fast, slow, busy = Place(expected=0.07), Place(expected=0.1), Place(3, expected=1.0)
    assert least_latency([fast, slow, busy, busy], at()) == 0
    fast.in_flight = 2
    assert least_latency([fast, slow, busy, busy], at()) == 1


def test_what_was_sent_since_counts_by_what_the_busier_ones_have():
    fast, slow, busy = Place(1, slots=32, expected=0.05), Place(slots=32, expected=0.09), Place(8, 32, expected=1.0)
    assert least_latency([fast, slow, busy, busy], at()) == 0
    fast.in_flight = 8
    assert least_latency([fast, slow, busy, busy], at()) == 1


def test_one_that_is_twice_as_fast_is_filled_until_it_is_hot():
    fast, slow, busy = Place(8, slots=32, expected=0.04), Place(slots=32, expected=0.1), Place(8, 32, expected=1.0)
    assert least_latency([fast, slow, *[busy] * 7], at()) == 0
    fast.in_flight = 9
    assert least_latency([fast, slow, *[busy] * 7], at()) == 1


def test_what_is_in_flight_weighs_by_the_places_there_are():
    large, small = Place(in_flight=6, slots=64), Place(in_flight=1, slots=2)
    assert least_latency([small, large, Place(4)], at()) == 1


def test_a_hot_one_is_left_alone_however_fast_it_was():
    hot = Place(in_flight=9, slots=16, expected=0.001)
    others = [Place(in_flight=1, slots=16, expected=0.1) for _ in range(9)]
    assert least_latency([hot, *others], at()) != 0


def test_an_unknown_one_is_tried_by_one_request_at_a_time():
    known, unknown = Place(expected=0.01), Place(expected=None)
    assert least_latency([known, unknown], at()) == 1
    unknown.in_flight = 1
    assert least_latency([known, unknown], at()) == 0


def test_unknown_ones_share_while_nothing_is_known():
    endpoints = [Place(in_flight=1, expected=None), Place(in_flight=2, expected=None)]
    assert least_latency(endpoints, at()) == 0


def test_one_that_failed_comes_last_even_behind_a_hot_one():
    endpoints = [Place(expected=5.0, failed=True), Place(in_flight=3, expected=0.1), Place(in_flight=3, expected=9.0)]
    assert least_latency(endpoints, at()) == 1
    assert least_latency([Place(expected=5.0, failed=True), Place(in_flight=4)], at()) == 0


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
@given(endpoints=places, turn=turns, avoid=avoided)
def test_one_with_room_is_picked_if_there_is_any(pick: Picker, endpoints, turn, avoid):
    picked = pick(endpoints, at(turn, avoid))
    with_room = [each for each in endpoints if each.has_room(0.0)]
    if with_room:
        assert picked is not None
        assert endpoints[picked].has_room(0.0)
        if endpoints[picked].name in avoid:
            assert all(each.name in avoid for each in with_room)
    else:
        assert picked is None


@given(endpoints=places, turn=turns)
def test_least_in_flight_leaves_no_emptier_one(endpoints, turn):
    picked = least_in_flight(endpoints, at(turn))
    if picked is not None:
        assert endpoints[picked].in_flight == min(each.in_flight for each in endpoints if each.has_room(0.0))


@given(endpoints=places, turn=turns)
def test_least_latency_picks_nobody_who_failed_while_another_has_room(endpoints, turn):
    picked = least_latency(endpoints, at(turn))
    if picked is not None and endpoints[picked].failed and endpoints[picked].expected is not None:
        assert all(each.failed and each.expected is not None for each in endpoints if each.has_room(0.0))


@given(endpoints=places, turn=turns)
def test_least_latency_leaves_none_that_is_faster_and_emptier(endpoints, turn):
    picked = least_latency(endpoints, at(turn))
    if picked is None or endpoints[picked].expected is None:
        return
    chosen = endpoints[picked]
    for each in endpoints:
        if each.has_room(0.0) and each.expected is not None and each.failed == chosen.failed:
            better = each.expected < chosen.expected and each.in_flight / each.slots < chosen.in_flight / chosen.slots
            assert not (better and not chosen.failed)


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
@given(free=st.lists(st.booleans(), min_size=1, max_size=6), rounds=st.integers(1, 5))
def test_equals_get_equal_shares(pick: Picker, free, rounds):
    endpoints = [Place(in_flight=0 if each else 4) for each in free]
    shares: Counter[int] = Counter()
    turn = 0
    for _ in range(rounds * sum(free)):
        index = pick(endpoints, at(turn))
        assert index is not None
        shares[index] += 1
        turn = index + 1
    assert set(shares.values()) <= {rounds}
