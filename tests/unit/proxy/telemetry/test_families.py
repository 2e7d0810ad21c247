# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.families import BOUNDS, Family, Histogram, Seconds


def test_a_duration_counts_in_the_first_bucket_that_holds_it():
    seconds = Seconds()
    for each in (0.0, 1e-4, 1.1e-4, 60.0, 61.0):
        seconds.observe(each)
    assert (seconds.counts[0], seconds.counts[1], seconds.counts[-2], seconds.counts[-1]) == (2, 1, 1, 1)
    assert "5 observed" in repr(seconds)


@given(st.lists(st.floats(0, 1e6)))
def test_every_duration_is_counted_once(durations):
    seconds = Seconds()
    for each in durations:
        seconds.observe(each)
    assert sum(seconds.counts) == len(durations)
    assert sum(seconds.counts[:6]) == sum(each <= BOUNDS[5] for each in durations)
    assert seconds.sum == sum(durations)


def test_samples_of_two_metrics_are_not_shared():
    one, other = Family("a", "", ()), Family("b", "", ())
    one.samples.append(((), 1))
    assert other.samples == []
    assert Histogram("a", "", ()).samples is not Histogram("b", "", ()).samples
