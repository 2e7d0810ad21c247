# SPDX-License-Identifier: Apache-2.0
"""The canonical log line, whole."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import structlog

from proxy.arrival import Answered, Operation
from proxy.telemetry import logs
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from qos.timeline import Timeline
from tests.fakes.answered import answered_request


@pytest.fixture(autouse=True)
def forget_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def line_of(
    answered: Answered | None = None, status: int = 200, reason: str = "ok", **arrival: object
) -> dict[str, object]:
    stream = io.BytesIO()
    logs.configure("json", "info", stream)
    answered = answered_request(**arrival) if answered is None else answered
    Telemetry(Metrics(version="0")).request_finished(answered, status=status, reason=reason)
    told = json.loads(stream.getvalue())
    assert isinstance(told, dict)
    return told


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
        "attempts": 1,
        "hedged": False,
        "bytes_in": 300,
        "bytes_out": 200,
        "detail": None,
        "network_ms": 20.0,
        "upload_ms": None,
        "queue_ms": 2.0,
        "backend_ms": 3.0,
        "backend_queue_ms": None,
        "compute_ms": 5.0,
        "download_ms": 1.0,
        "first_byte_ms": None,
        "total_ms": 11.0,
    }


TIMES = Timeline(100.0, 100.001, 100.003, 100.013, 100.5, 0.02, 0.006, 0.003)


def test_a_token_stream_tells_when_its_first_byte_came():
    line = line_of(replace(answered_request(timeline=TIMES), streaming=True, attempts=2, hedged=True))
    assert (line["first_byte_ms"], line["upload_ms"], line["download_ms"]) == (13.0, 1.0, 487.0)
    assert (line["backend_queue_ms"], line["attempts"], line["hedged"]) == (3.0, 2, True)


def test_what_nobody_measured_is_null():
    line = line_of(status=503, reason="queue_full", timeline=Timeline(100.0))
    assert [line[f"{part}_ms"] for part in ("network", "queue", "backend", "compute", "total")] == [None] * 5
    assert (line["status"], line["reason"]) == (503, "queue_full")


@pytest.fixture
def telemetry() -> Telemetry:
    logs.configure("json", "warning", io.BytesIO())
    return Telemetry(Metrics(version="0"), clock=lambda: 110.0)


def test_below_its_level_nothing_is_written_and_the_metrics_still_count():
    stream = io.BytesIO()
    logs.configure("json", "warning", stream)
    metrics = Metrics(version="0")
    Telemetry(metrics).request_finished(answered_request(), status=200, reason="ok")
    assert stream.getvalue() == b""
    assert b'inferlane_requests_total{class="rank-0"' in metrics.page()[0]


def test_the_pieces_of_a_token_stream_are_counted_and_timed():
    metrics = Metrics(version="0")
    telemetry, answered = Telemetry(metrics), answered_request()
    telemetry.first_piece(answered, 0.25)
    telemetry.piece_sent(answered, 0.02)
    page = metrics.page()[0]
    assert b'inferlane_first_byte_seconds_sum{class="rank-0",pool="digits"} 0.25' in page
    assert b'inferlane_token_gap_seconds_count{class="rank-0",pool="digits"} 1.0' in page


async def test_a_diagnosis_is_about_what_was_finished(telemetry):
    telemetry.request_finished(answered_request(), status=200, reason="ok")
    telemetry.request_finished(answered_request(), status=429, reason="queue_full")
    report = await telemetry.diagnose()
    (promise,) = report.promises
    assert (promise.traffic_class, promise.pool, promise.kept, promise.refused) == ("rank-0", "digits", 1, 1)
    assert not report.holds


async def test_health_and_metadata_are_no_promise_unless_they_are_refused(telemetry):
    about = answered_request(operation=Operation.METADATA)
    telemetry.request_finished(about, status=200, reason="ok")
    assert (await telemetry.diagnose()).promises == []
    telemetry.request_finished(about, status=502, reason="backend_failed")
    assert (await telemetry.diagnose()).promises[0].refused == 1


async def test_what_is_openai_s_is_a_promise_too(telemetry):
    telemetry.request_finished(answered_request(operation=Operation.OPENAI), status=200, reason="ok")
    assert (await telemetry.diagnose()).promises[0].kept == 1
