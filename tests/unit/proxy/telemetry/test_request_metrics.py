# SPDX-License-Identifier: Apache-2.0
"""Requests, counted and timed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.telemetry.request_metrics import MOST_SERIES, RequestMetrics
from qos.timeline import Timeline
from tests.fakes.answered import answered_request

WHERE = ("rank-0", "digits")


def finish(requests: RequestMetrics, reason: str = "ok", **arrival: object) -> None:
    answered = answered_request(**arrival)
    requests.finished(answered, answered.arrival.timeline.parts(), reason=reason)


def counts(requests: RequestMetrics) -> dict[str, dict[tuple[str, ...], float]]:
    return {family.name: dict(family.samples) for family in requests.families()}


def times(requests: RequestMetrics) -> dict[tuple[str, ...], tuple[int, float]]:
    """(metric, labels...) -> how many, and their sum."""
    return {
        (each.name.removeprefix("inferlane_"), *labels): (sum(seconds.counts), seconds.sum)
        for each in requests.histograms()
        for labels, seconds in each.samples
    }


def test_a_request_counts_where_it_went_and_how_it_ended():
    requests = RequestMetrics()
    finish(requests)
    finish(requests)
    finish(requests, "deadline")
    found = counts(requests)
    assert found["inferlane_requests"] == {
        ("main", "h3", *WHERE, "e0", "ok"): 2,
        ("main", "h3", *WHERE, "e0", "deadline"): 1,
    }
    assert found["inferlane_request_bytes"] == {WHERE: 900}
    assert found["inferlane_reply_bytes"] == {WHERE: 600}
    assert repr(requests) == "<RequestMetrics 3 requests>"


def test_the_parts_of_a_request_are_disjoint():
    requests = RequestMetrics()
    timeline = Timeline(100.0, 100.001, 100.003, 100.013, 100.014, 0.02, 0.006, 0.003)
    finish(requests, timeline=timeline)
    found = times(requests)
    stages = {key[-1]: total for key, (_, total) in found.items() if key[0] == "stage_seconds"}
    assert stages == pytest.approx(
        {"upload": 0.001, "queue": 0.002, "backend": 0.001, "backend_queue": 0.003, "compute": 0.006, "download": 0.001}
    )
    assert found["request_seconds", *WHERE] == (1, pytest.approx(sum(stages.values())))
    assert found["client_rtt_seconds", "main"] == (1, pytest.approx(0.02))


def test_a_backend_that_reports_more_waiting_than_there_was_leaves_nothing_negative():
    requests = RequestMetrics()
    finish(requests, timeline=Timeline(100.0, 100.0, 100.0, 100.01, 100.01, backend_queue_s=5.0))
    assert times(requests)["stage_seconds", *WHERE, "backend"] == (1, 0.0)


def test_what_was_not_reached_is_not_observed():
    requests = RequestMetrics()
    finish(requests, "queue_full", timeline=Timeline(100.0, finished=100.1))
    assert {count for count, _ in times(requests).values()} == {0}


def test_a_token_stream_is_timed_by_its_first_piece_and_its_gaps():
    requests = RequestMetrics()
    answered = answered_request()
    requests.first_piece(answered, 0.3)
    requests.piece_sent(answered, 0.02)
    requests.piece_sent(answered, 0.04)
    found = times(requests)
    assert found["first_byte_seconds", *WHERE] == (1, 0.3)
    assert found["token_gap_seconds", *WHERE] == (2, pytest.approx(0.06))


def test_pools_that_stream_nothing_have_no_series_for_it():
    requests = RequestMetrics()
    finish(requests)
    assert not any(key[0] in ("first_byte_seconds", "token_gap_seconds") for key in times(requests))


def test_classes_and_pools_are_apart():
    requests = RequestMetrics()
    finish(requests)
    other = replace(answered_request(), pool="other")
    requests.finished(other, other.arrival.timeline.parts(), reason="ok")
    assert counts(requests)["inferlane_reply_bytes"] == {WHERE: 200, ("rank-0", "other"): 200}


def test_endpoints_that_come_and_go_leave_no_series_for_ever():
    requests = RequestMetrics()
    finish(requests)
    for number in range(4 * MOST_SERIES):
        passing = replace(answered_request(), endpoint=f"oip:pool@10.0.0.{number}")
        requests.finished(passing, passing.arrival.timeline.parts(), reason="ok")
        if number % 100 == 0:
            finish(requests)
    found = counts(requests)["inferlane_requests"]
    assert len(found) <= 2 * MOST_SERIES
    assert found["main", "h3", *WHERE, "e0", "ok"] == 1 + len(range(0, 4 * MOST_SERIES, 100))  # who stays is counted on
