# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.latency import LEAST, Latencies, TimeNeeded

seconds = st.floats(2e-5, 1500.0)


def of(values: list[float], *, now: float = 100.0) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.observe(value, now)
    return latencies


def test_nothing_is_told_of_too_few():
    latencies = of([0.05] * (LEAST - 1))
    assert latencies.quantile(0.5, 100.0) is None
    assert latencies.mean(100.0) is None
    latencies.observe(0.05, 100.0)
    assert latencies.quantile(0.5, 100.0) == pytest.approx(0.05, rel=0.05)
    assert latencies.mean(100.0) == pytest.approx(0.05)


def test_after_a_half_life_half_is_left_and_in_the_end_nothing_is_told():
    latencies = Latencies(half_life_s=10.0)
    for _ in range(40):
        latencies.observe(0.05, 100.0)
    assert latencies.count(110.0) == pytest.approx(20.0)
    assert latencies.count(110.1) < LEAST
    assert latencies.quantile(0.5, 110.1) is None
    assert latencies.count(1e9) == pytest.approx(0.0)


def test_what_comes_later_weighs_more():
    latencies = of([1.0] * 100, now=100.0)
    for _ in range(30):
        latencies.observe(0.01, 120.0)  # of the hundred, 25 are left
    assert latencies.quantile(0.5, 120.0) == pytest.approx(0.01, rel=0.05)
    assert latencies.quantile(0.9, 120.0) == pytest.approx(1.0, rel=0.05)


def test_a_quantile_may_be_ten_milliseconds_old():
    latencies = of([0.01] * 30)
    assert latencies.quantile(0.5, 100.0) == pytest.approx(0.01, rel=0.05)
    for _ in range(100):
        latencies.observe(1.0, 100.001)
    assert latencies.quantile(0.5, 100.001) == pytest.approx(0.01, rel=0.05)
    assert latencies.quantile(0.5, 100.02) == pytest.approx(1.0, rel=0.05)


def test_weights_grow_over_days_without_losing_precision():
    latencies = Latencies(half_life_s=0.5)
    for step in range(20_000):
        latencies.observe(0.05, step * 0.02)
    assert latencies.count(400.0) == pytest.approx(0.5 / math.log(2) / 0.02, rel=0.05)
    for step in range(100):
        latencies.observe(2.0, 1e6 + step)
    assert latencies.count(1e6 + 99) == pytest.approx(4 / 3, rel=0.01)


def test_a_clock_that_steps_back_changes_nothing():
    latencies = of([0.05] * 40)
    latencies.observe(0.05, 50.0)
    assert latencies.count(50.0) == pytest.approx(41.0)
    assert latencies.count(100.0) == pytest.approx(41.0)


@pytest.mark.parametrize(("value", "told"), [(0.0, 1e-5), (-1.0, 1e-5), (1e9, 2000.0), (math.inf, 2000.0)])
def test_what_no_bucket_is_for_goes_into_the_nearest(value, told):
    assert of([value] * 30).quantile(0.5, 100.0) == pytest.approx(told, rel=0.1)


def test_its_repr_tells_what_there_is():
    assert repr(of([0.05] * 3)) == "<Latencies 3.0 seen, too few>"
    assert repr(of([0.05] * 30)).startswith("<Latencies 30 seen, median 0.0")


def test_of_an_exponential_the_quantiles_are_the_formulas():
    rng = random.Random(1)
    latencies = of([rng.expovariate(20.0) for _ in range(50_000)])
    for q in (0.5, 0.9, 0.95, 0.99):
        assert latencies.quantile(q, 100.0) == pytest.approx(-math.log(1 - q) / 20.0, rel=0.08)
    assert latencies.mean(100.0) == pytest.approx(0.05, rel=0.02)


@given(st.lists(seconds, min_size=LEAST, max_size=200), st.floats(0.0, 1.0))
def test_a_quantile_is_within_5_percent_of_the_value_of_that_rank(values: list[float], q: float):
    found = of(values).quantile(q, 100.0)
    ordered = sorted(values)
    rank = q * len(values)
    # Where q falls on the border of two values, rounding may take either.
    least = ordered[max(0, math.ceil(rank - 1e-6) - 1)]
    most = ordered[min(len(values) - 1, max(0, math.ceil(rank + 1e-6) - 1))]
    assert found is not None
    assert least / 1.05 <= found <= most * 1.05


@given(st.lists(seconds, min_size=LEAST, max_size=100), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=5))
def test_a_higher_quantile_is_never_less(values: list[float], qs: list[float]):
    latencies = of(values)
    found = [latencies.quantile(q, 100.0) or 0.0 for q in sorted(qs)]
    assert found == sorted(found)


@given(st.lists(st.tuples(seconds, st.floats(0.0, 100.0)), min_size=1, max_size=100))
def test_the_count_is_the_sum_of_the_weights(observed: list[tuple[float, float]]):
    latencies = Latencies(half_life_s=5.0)
    now, at = 0.0, []
    for value, pause in observed:
        now += pause
        latencies.observe(value, now)
        at.append(now)
    assert latencies.count(now) == pytest.approx(sum(0.5 ** ((now - each) / 5.0) for each in at), rel=1e-6)


def test_the_time_needed_is_what_most_answers_stay_within():
    needed = TimeNeeded()
    for n in range(LEAST):
        assert needed.seconds(float(n)) is None
        needed.answered(1.0 + n, float(n) / 10)
    assert needed.seconds(2.0) == 1.0 + int(LEAST * 5 / 6)
    assert needed.seconds(60.0) is None  # nothing was seen for long
    needed.answered(1.0, 60.0)
    assert needed.seconds(60.0) is None


@pytest.mark.parametrize(("times", "of_ten"), [(1.0, 8), (0.2, 8), (9.0, 8), (90.0, 8)])
def test_the_time_needed_is_found_again_when_it_has_changed(times: float, of_ten: int):
    """A queue hands each place to a request that has just the time that is thought to be needed."""
    rng = random.Random(4)
    needed, now = TimeNeeded(), 0.0
    answered = []
    for n in range(1000):
        now += 0.01
        takes = rng.uniform(0.09, 0.11) * (1.0 if n < 200 else times)
        has = needed.seconds(now) or 1.0
        if takes <= has:
            needed.answered(takes, now)
        else:
            needed.given_up(has, now)
        answered.append(takes <= has)
    assert sum(answered[600:]) >= 40 * of_ten
    assert 0.09 * times <= (needed.seconds(now) or 0.0) <= 0.13 * times


def test_who_gives_up_sooner_than_needed_teaches_nothing_but_that_somebody_asks():
    needed = TimeNeeded()
    for _ in range(LEAST):
        needed.answered(0.1, 0.0)
    for n in range(30):
        needed.given_up(0.05, float(n))
    assert needed.seconds(30.0) == 0.1


@given(st.lists(st.tuples(st.booleans(), seconds, st.floats(0.0, 20.0)), max_size=100))
def test_the_time_needed_stays_near_what_was_seen(seen: list[tuple[bool, float, float]]):
    needed, now = TimeNeeded(), 0.0
    for good, value, pause in seen:
        now += pause
        (needed.answered if good else needed.given_up)(value, now)
        found = needed.seconds(now)
        values = [each for _, each, _ in seen]
        assert found is None or min(values) * 0.99 <= found <= max(values) * 1.05
