# SPDX-License-Identifier: Apache-2.0
"""Quantiles, losses, and the verdict in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.selftest.figures import Figures, figures, quantile, verdict


def phase(p99_s: float, *, lost: int = 0) -> dict[str, Figures]:
    return {"realtime": Figures(sent=500, lost=lost, p50_s=p99_s / 2, p99_s=p99_s)}


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_and_that_share_does_not_exceed_it(values, share):
    found = quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_of_nothing_there_is_no_quantile():
    assert math.isnan(quantile([], 0.5))
    assert figures(3, []).lost == 3


def test_what_did_not_arrive_is_lost():
    made = figures(4, [0.3, 0.1, 0.2])
    assert (made.lost, made.p50_s, made.p99_s) == (1, 0.2, 0.3)


def test_the_classes_hold_when_a_full_link_adds_less_than_a_millisecond():
    found = verdict("realtime", phase(0.0001), phase(0.105, lost=30), phase(0.0009))
    assert found.holds
    assert "+0.80 ms above the idle link's under the plan, +104.9 ms without it" in found.reasons[0]
    assert "0 of 500 lost under the plan, 30 of 500 without it" in found.reasons[1]


@pytest.mark.parametrize(
    ("planned", "lost"), [(0.0012, 0), (0.0002, 1), (float("nan"), 500)], ids=["late", "lost", "nothing arrived"]
)
def test_the_classes_do_not_hold_when_probes_are_late_or_lost(planned, lost):
    assert not verdict("realtime", phase(0.0001), phase(0.105), phase(planned, lost=lost)).holds


def test_a_link_that_was_never_full_proves_nothing():
    found = verdict("realtime", phase(0.0001), phase(0.0003), phase(0.0001))
    assert not found.holds
    assert "nothing is proved" in found.reasons[-1]
