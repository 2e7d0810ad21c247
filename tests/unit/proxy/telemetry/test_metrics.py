# SPDX-License-Identifier: Apache-2.0
"""The page that Prometheus reads, as its own parser understands it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.telemetry.link_metrics import LinksSeen
from proxy.telemetry.metrics import Metrics
from qos.traffic_class import ClassTable
from tests.fakes.answered import answered_request
from tests.fakes.endpoints import traffic_class
from tests.fakes.gates import GateSeen

NOW = 50.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="0.1.0", clock=lambda: NOW)


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
    metrics.requests.finished(answered, answered.arrival.timeline.parts(), reason=reason)


def test_a_count_has_its_labels(metrics):
    finish(metrics)
    finish(metrics, "deadline")
    found = samples(metrics)
    where = ("rank-0", "e0", "main", "digits")
    assert found["inferlane_requests_total", *where, "ok", "h3"] == 1
    assert found["inferlane_requests_total", *where, "deadline", "h3"] == 1
    assert found["inferlane_request_bytes_total", "rank-0", "digits"] == 600


def test_a_histogram_is_cumulative(metrics):
    finish(metrics)
    found = samples(metrics)
    assert found["inferlane_request_seconds_sum", "rank-0", "digits"] == pytest.approx(0.011)
    assert found["inferlane_request_seconds_bucket", "rank-0", "0.01", "digits"] == 0
    assert found["inferlane_request_seconds_bucket", "rank-0", "0.025", "digits"] == 1
    assert found["inferlane_request_seconds_bucket", "rank-0", "+Inf", "digits"] == 1
    assert found["inferlane_stage_seconds_sum", "rank-0", "digits", "compute"] == pytest.approx(0.005)


def test_nothing_that_a_client_chooses_becomes_a_label(metrics):
    chosen = {"request_id", "client", "path", "model", "traceparent"}
    finish(metrics, **dict.fromkeys(chosen, "from-the-client"))
    assert "from-the-client" not in metrics.page()[0].decode()


def test_a_gate_is_read_when_somebody_looks_as_it_is_at_that_instant(metrics):
    gate = GateSeen("digits")
    gate.pool.add("e0", states={NOW: "draining"})
    classes = [traffic_class(0), traffic_class(1)]
    metrics.watch_gate(gate, ClassTable(classes, classes[1]))
    found = samples(metrics)
    assert found["inferlane_endpoint_state", "e0", "digits", "draining"] == 1
    assert found["inferlane_gate_waiting", "rank-1", "digits"] == 0
    assert found["inferlane_retries_total", "digits"] == 0
    gate.waiting, gate.counts.retries = {"rank-1": 4}, 2
    found = samples(metrics)
    assert found["inferlane_gate_waiting", "rank-1", "digits"] == 4
    assert found["inferlane_retries_total", "digits"] == 2


def test_classes_that_came_with_a_reload_are_told(metrics):
    metrics.watch_gate(GateSeen("digits"), ClassTable([traffic_class(0)], traffic_class(0)))
    metrics.use_classes(ClassTable([traffic_class(7)], traffic_class(7)))
    waiting = {key for key in samples(metrics) if key[0] == "inferlane_gate_waiting"}
    assert waiting == {("inferlane_gate_waiting", "rank-7", "digits")}


COUNTS = SimpleNamespace(
    datagrams_received=7,
    datagrams_sent=5,
    datagrams_dropped={"malformed": 2},
    kernel_drops=0,
    trains={"sent": 0, "refused": 0},
    connections=3,
    handshakes=4,
)
TCP_COUNTS = SimpleNamespace(connections=1, handshakes=2, connections_dropped={})


def test_a_door_is_read_when_somebody_looks(metrics):
    metrics.watch_door("main", COUNTS)
    metrics.watch_tcp_door("main", TCP_COUNTS)
    found = samples(metrics)
    assert found["inferlane_datagrams_total", "in", "main"] == 7
    assert found["inferlane_quic_connections", "main"] == 3
    assert found["inferlane_tcp_handshakes_total", "main"] == 2


def test_probes_and_look_ups_are_read_where_there_are_some(metrics):
    assert not any(name.startswith(("inferlane_probes", "inferlane_discovery")) for name, *_ in samples(metrics))
    metrics.watch_probing(SimpleNamespace(counts={("digits", True): 7}))
    metrics.watch_discovery(SimpleNamespace(failures={("digits", "name"): 3}))
    found = samples(metrics)
    assert found["inferlane_probes_total", "digits", "ok"] == 7
    assert found["inferlane_discovery_failures_total", "digits", "name"] == 3


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


def test_what_several_workers_values_of_a_gauge_make_together_is_decided_for_each(metrics):
    gate = GateSeen("digits")
    gate.pool.add("e0")
    metrics.watch_gate(gate, ClassTable([traffic_class(0)], traffic_class(0)))
    metrics.watch_door("main", COUNTS)
    metrics.watch_tcp_door("main", TCP_COUNTS)
    metrics.show_links(LinksSeen(attended=True))
    gauges = {each.name: each.across for each in metrics.export() if each.kind == "gauge"}
    process = {name for name in gauges if name.startswith("process_")}
    assert {name: across for name, across in gauges.items() if name not in process} == {
        "inferlane_build_info": "max",
        "inferlane_gate_waiting": "sum",
        "inferlane_in_flight": "sum",
        "inferlane_endpoint_slots": "max",  # a limit that they keep together
        "inferlane_endpoint_ready": "mean",  # the share of workers that use it: 0 is nobody
        "inferlane_endpoint_state": "mean",
        "inferlane_endpoint_predicted_seconds": "mean",
        "inferlane_quic_connections": "sum",
        "inferlane_tcp_connections": "sum",
        "inferlane_link_unattended": "max",
        "inferlane_link_in_force": "min",
        "inferlane_link_backlog_bytes": "max",
        "inferlane_link_rate_bytes_per_second": "max",
        "inferlane_link_ceiling_bytes_per_second": "max",
    }
