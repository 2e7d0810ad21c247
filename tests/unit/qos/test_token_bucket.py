# SPDX-License-Identifier: Apache-2.0
"""A bucket lets through its burst at once and its rate over time, whatever the pieces are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.token_bucket import TokenBucket

RATE, BURST = 1000.0, 500.0
pieces = st.lists(st.tuples(st.integers(0, 2000), st.floats(0, 3)), max_size=40)


def test_a_burst_goes_at_once_and_the_next_byte_waits() -> None:
    bucket = TokenBucket(RATE, BURST)
    assert bucket.wait_s(500, 10.0) == 0
    bucket.take(500, 10.0)
    assert bucket.wait_s(100, 10.0) == pytest.approx(0.1)
    assert bucket.wait_s(100, 10.05) == pytest.approx(0.05)
    assert bucket.wait_s(100, 10.1) == pytest.approx(0)


def test_what_is_longer_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    bucket = TokenBucket(RATE, BURST)
    assert bucket.wait_s(1500, 0.0) == 0
    bucket.take(1500, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(1.001)
    assert bucket.wait_s(1500, 0.0) == pytest.approx(1.5)


def test_a_clock_that_steps_back_gives_nothing() -> None:
    bucket = TokenBucket(RATE, BURST)
    bucket.take(500, 10.0)
    assert bucket.wait_s(100, 9.0) == pytest.approx(0.1)


@given(pieces)
def test_who_waits_as_told_never_exceeds_the_rate_by_more_than_a_burst(sizes: list[tuple[int, float]]) -> None:
    bucket, now, passed, longest = TokenBucket(RATE, BURST), 0.0, 0, 0
    for count, pause in sizes:
        now += pause
        now += bucket.wait_s(count, now)
        bucket.take(count, now)
        passed, longest = passed + count, max(longest, count)
        assert passed <= BURST + RATE * now + longest + 1e-3


@given(pieces)
def test_it_is_never_slower_than_its_rate(sizes: list[tuple[int, float]]) -> None:
    bucket, now, passed = TokenBucket(RATE, BURST), 0.0, 0
    for count, _ in sizes:
        now += bucket.wait_s(count, now)
        bucket.take(count, now)
        passed += count
    # Each piece waits for a burst at most, so a long one may wait although it leaves a debt afterwards.
    assert now * RATE <= passed + BURST + 1e-3
