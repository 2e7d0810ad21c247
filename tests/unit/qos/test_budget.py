# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qos.budget import Budget


def spend_all(budget: Budget) -> int:
    spent = 0
    while budget.spend():
        spent += 1
    return spent


def test_a_few_may_be_made_at_once_and_then_a_part_of_the_requests():
    budget = Budget(0.2, reserve=10)
    assert spend_all(budget) == 10
    for _ in range(4):
        budget.earn()
        assert not budget.allows
        assert not budget.spend()
    budget.earn()
    assert budget.allows
    assert spend_all(budget) == 1


def test_ten_tenths_are_one():
    budget = Budget(0.1, reserve=1)
    spend_all(budget)
    for _ in range(10):
        budget.earn()
    assert budget.spend()


def test_a_quiet_hour_pays_for_no_storm():
    budget = Budget(0.2, reserve=10)
    for _ in range(100_000):
        budget.earn()
    assert spend_all(budget) == 10


def test_no_share_is_no_attempt_whatever_the_reserve():
    budget = Budget(0.0, reserve=10)
    budget.earn()
    assert not budget.allows
    assert spend_all(budget) == 0


def test_without_a_reserve_one_is_saved_up_for():
    budget = Budget(0.5, reserve=0)
    spend_all(budget)
    for _ in range(10):
        budget.earn()
    assert spend_all(budget) == 1


def test_its_repr_tells_what_is_left():
    assert repr(Budget(0.2, reserve=10)) == "<Budget 10.0 of 10 left, 20% of requests>"


@given(
    share=st.floats(0.001, 1.0),
    reserve=st.integers(1, 20),
    steps=st.lists(st.booleans(), max_size=300),
    first=st.integers(0, 300),
)
def test_over_any_stretch_no_more_is_spent_than_share_and_reserve(
    share: float, reserve: int, steps: list[bool], first: int
):
    budget = Budget(share, reserve=reserve)
    requests = spent = 0
    for index, is_request in enumerate(steps):
        if index == first:
            requests = spent = 0  # the bound holds from anywhere on
        if is_request:
            budget.earn()
            requests += 1
        else:
            spent += budget.spend()
        assert spent <= share * requests + reserve + 1e-3


@given(st.floats(0.01, 1.0), st.integers(100, 500))
def test_and_what_is_allowed_can_be_spent(share: float, requests: int):
    budget = Budget(share, reserve=2)
    spent = 0
    for _ in range(requests):
        budget.earn()
        spent += budget.spend()
    assert spent >= share * requests - 1
