# SPDX-License-Identifier: Apache-2.0
"""The page that Prometheus reads, as its own parser understands it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.gate import Gate
from proxy.telemetry.metrics import Metrics
from qos.timeline import Timeline
from qos.traffic_class import ClassTable
from tests.fakes.answered import answered_request
from tests.fakes.endpoints import pool_of, traffic_class

STAGES = ("queue", "backend", "compute")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="0.1.0")


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names) -> value."""
    page, _ = metrics.page()
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def finish(metrics: Metrics, reason: str = "ok", **arrival: object) -> None:
    answered = answered_request(**arrival)
    metrics.request_finished(answered, answered.arrival.timeline.parts(), reason=reason)


def test_a_request_counts_where_it_went_and_how_it_ended(metrics):
    finish(metrics)
    finish(metrics)
    finish(metrics, "deadline")
    found = samples(metrics)
    where = ("rank-0", "e0", "main", "digits")
    assert found["inferlane_requests_total", *where, "ok", "h3"] == 2
    assert found["inferlane_requests_total", *where, "deadline", "h3"] == 1
    assert found["inferlane_request_bytes_total", "rank-0", "digits"] == 900
    assert found["inferlane_reply_bytes_total", "rank-0", "digits"] == 600


def test_the_parts_of_a_request_are_observed_each(metrics):
    finish(metrics)
    found = samples(metrics)
    sums = {stage: found["inferlane_stage_seconds_sum", "rank-0", "digits", stage] for stage in STAGES}
    assert sums == pytest.approx({"queue": 0.002, "backend": 0.003, "compute": 0.005})
    assert found["inferlane_request_seconds_sum", "rank-0", "digits"] == pytest.approx(0.011)
    assert found["inferlane_request_seconds_bucket", "rank-0", "0.01", "digits"] == 0
    assert found["inferlane_request_seconds_bucket", "rank-0", "0.025", "digits"] == 1
    assert found["inferlane_client_rtt_seconds_sum", "main"] == pytest.approx(0.02)


def test_what_was_not_reached_is_not_observed(metrics):
    finish(metrics, "queue_full", timeline=Timeline(100.0, finished=100.1))
    found = samples(metrics)
    assert found["inferlane_request_seconds_count", "rank-0", "digits"] == 0
    assert [found["inferlane_stage_seconds_count", "rank-0", "digits", stage] for stage in STAGES] == [0, 0, 0]
    assert ("inferlane_client_rtt_seconds_count", "main") not in found


def test_nothing_that_a_client_chooses_becomes_a_label(metrics):
    chosen = {"request_id", "client", "path", "model", "traceparent"}
    finish(metrics, **dict.fromkeys(chosen, "from-the-client"))
    assert "from-the-client" not in metrics.page()[0].decode()


def test_a_gate_is_read_when_somebody_looks(metrics):
    classes = [traffic_class(0), traffic_class(1)]
    pool = pool_of(1, 4)
    metrics.watch_gate(Gate(pool), ClassTable(classes, classes[1]))
    pool.endpoints[1].take()
    pool.endpoints[0].backend.ready = False
    found = samples(metrics)
    assert found["inferlane_gate_waiting", "rank-0", "digits"] == 0
    assert found["inferlane_gate_waiting", "rank-1", "digits"] == 0
    assert found["inferlane_in_flight", "e1", "digits"] == 1
    assert found["inferlane_endpoint_slots", "e1", "digits"] == 4
    assert found["inferlane_endpoint_ready", "e0", "digits"] == 0
    assert found["inferlane_endpoint_ready", "e1", "digits"] == 1
    pool.endpoints[1].release()
    assert samples(metrics)["inferlane_in_flight", "e1", "digits"] == 0


COUNTS = SimpleNamespace(
    datagrams_received=7, datagrams_sent=5, datagrams_dropped={"malformed": 2}, connections=3, handshakes=4
)


def test_a_door_is_read_when_somebody_looks(metrics):
    metrics.watch_door("main", COUNTS)
    found = samples(metrics)
    assert found["inferlane_datagrams_total", "in", "main"] == 7
    assert found["inferlane_datagrams_total", "out", "main"] == 5
    assert found["inferlane_datagrams_dropped_total", "main", "malformed"] == 2
    assert found["inferlane_quic_connections", "main"] == 3
    assert found["inferlane_quic_handshakes_total", "main"] == 4


def test_the_version_and_the_process_are_told(metrics):
    found = samples(metrics)
    assert found["inferlane_build_info", "0.1.0"] == 1
    assert found["process_cpu_seconds_total",] > 0


def test_all_our_names_have_our_prefix(metrics):
    finish(metrics)
    metrics.watch_door("main", COUNTS)
    names = {name for name, *_ in samples(metrics)}
    assert {name for name in names if not name.startswith(("inferlane_", "process_"))} == set()


def test_a_scraper_that_prefers_openmetrics_gets_it(metrics):
    finish(metrics)
    page, content_type = metrics.page("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


def test_two_gateways_in_one_process_do_not_share_counts(metrics):
    finish(metrics)
    assert not any(name.startswith("inferlane_requests") for name, *_ in samples(Metrics(version="0.1.0")))
