# SPDX-License-Identifier: Apache-2.0
"""The canonical log line, whole."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from proxy.telemetry import logs
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from qos.timeline import Timeline
from tests.fakes.answered import answered_request


@pytest.fixture(autouse=True)
def forget_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def line_of(level: str = "info", status: int = 200, reason: str = "ok", **arrival: object) -> dict[str, object] | None:
    stream = io.BytesIO()
    logs.configure("json", level, stream)
    Telemetry(Metrics(version="0")).request_finished(answered_request(**arrival), status=status, reason=reason)
    return json.loads(stream.getvalue()) if stream.getvalue() else None


def test_another_log_level_takes_effect_while_requests_run():
    stream = io.BytesIO()
    logs.configure("json", "warning", stream)
    telemetry = Telemetry(Metrics(version="0"))
    telemetry.request_finished(answered_request(), status=200, reason="ok")
    assert not stream.getvalue()
    logs.configure("json", "info", stream)
    telemetry.use_log_level()
    telemetry.request_finished(answered_request(), status=200, reason="ok")
    assert json.loads(stream.getvalue())["event"] == "request_finished"


def test_one_line_tells_the_whole_request():
    line = line_of(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert line is not None
    assert line.pop("timestamp")
    assert line == {
        "level": "info",
        "event": "request_finished",
        "request_id": "4bf92f35",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "listener": "main",
        "transport": "h3",
        "client": "192.0.2.7",
        "dscp": "EF",
        "class": "rank-0",
        "why": "default class",
        "operation": "infer",
        "model": "digits",
        "pool": "digits",
        "endpoint": "e0",
        "status": 200,
        "reason": "ok",
        "bytes_in": 300,
        "bytes_out": 200,
        "detail": None,
        "network_ms": 20.0,
        "queue_ms": 2.0,
        "backend_ms": 3.0,
        "compute_ms": 5.0,
        "total_ms": 11.0,
    }


def test_what_nobody_measured_is_null():
    line = line_of(status=503, reason="queue_full", timeline=Timeline(100.0))
    assert line is not None
    assert [line[f"{part}_ms"] for part in ("network", "queue", "backend", "compute", "total")] == [None] * 5
    assert (line["status"], line["reason"]) == (503, "queue_full")


def test_below_its_level_nothing_is_written_and_the_metrics_still_count():
    stream = io.BytesIO()
    logs.configure("json", "warning", stream)
    metrics = Metrics(version="0")
    Telemetry(metrics).request_finished(answered_request(), status=200, reason="ok")
    assert stream.getvalue() == b""
    assert b'inferlane_requests_total{class="rank-0"' in metrics.page()[0]
