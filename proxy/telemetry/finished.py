# SPDX-License-Identifier: Apache-2.0
"""What remains of a request when it is over: its counts and its one canonical log line."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
import structlog

from proxy.arrival import Answered, Operation
from proxy.telemetry import logs
from proxy.telemetry.metrics import Metrics
from qos.diagnosis import Diagnosis, report
from qos.dscp import dscp_name
from qos.promise import Report
from qos.timeline import Parts, Timeline

__all__ = ["Telemetry"]


class Telemetry:
    """The pipeline's way to tell what happened. Made after logging is configured: it asks for the level then."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = metrics.requests
        self.diagnosis = Diagnosis()
        self._clock = clock
        self.use_log_level()

    def use_log_level(self) -> None:
        """Logging was configured, maybe anew."""
        self._log = structlog.get_logger("inferlane.requests").bind()
        # 30 values are not worth gathering for a line that nobody will write.
        self._logs = self._log.is_enabled_for(logging.INFO)
        self._direct = logs.direct()

    def request_finished(self, answered: Answered, *, status: int, reason: str) -> None:
        """Once a request, when its answer is out or its client has left. reason: ok, or a Reason's label."""
        arrival = answered.arrival
        parts = arrival.timeline.parts()
        self._requests.finished(answered, parts, reason=reason)
        # Health and metadata cost no place and promise nothing; where they are refused somebody should look.
        if arrival.operation is Operation.INFER or arrival.operation is Operation.OPENAI or reason != "ok":
            self.diagnosis.observe(answered, arrival.timeline, reason)
        if self._logs:
            line = _line(answered, parts, status, reason)
            if self._direct is None or not self._direct.write(line):
                self._log.info(line.event, **logs.told(line))

    def first_piece(self, answered: Answered, seconds: float) -> None:
        """The first piece of a token stream is out. seconds: since its request was received."""
        self._requests.first_piece(answered, seconds)

    def piece_sent(self, answered: Answered, gap_s: float) -> None:
        """A later piece of a token stream is out. gap_s: seconds since the one before."""
        self._requests.piece_sent(answered, gap_s)

    async def diagnose(self) -> Report:
        """How the promises stand, for /v1/diagnose. Requests go on between one promise and the next."""
        promises = []
        for promise in self.diagnosis.promises(self._clock()):
            promises.append(promise)
            await asyncio.sleep(0)
        return report(promises)


class _Line(logs.Line):
    """What everybody who looks into one request's fate starts from."""

    request_id: str
    traceparent: str | None
    listener: str
    transport: str
    client: str
    dscp: str
    class_name: str = msgspec.field(name="class")
    why: str
    operation: str
    model: str
    pool: str
    endpoint: str
    status: int
    reason: str
    attempts: int
    hedged: bool
    detail: str | None
    bytes_in: int
    bytes_out: int
    network_ms: float | None
    upload_ms: float | None
    queue_ms: float | None
    backend_ms: float | None
    backend_queue_ms: float | None
    compute_ms: float | None
    download_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None


def _line(answered: Answered, parts: Parts, status: int, reason: str) -> _Line:
    arrival = answered.arrival
    timeline = arrival.timeline
    network, queue, backend, compute, upload, backend_queue, download = map(_ms, parts)
    # In the order of the fields: naming thirty of them takes twice as long.
    return _Line(
        logs.timestamp(),
        "info",
        "request_finished",
        arrival.request_id,
        arrival.traceparent,
        arrival.listener,
        arrival.transport,
        arrival.client,
        dscp_name(arrival.dscp),
        answered.traffic_class.name,
        answered.why,
        arrival.operation.value,
        arrival.model,
        answered.pool,
        answered.endpoint,
        status,
        reason,
        answered.attempts,
        answered.hedged,
        answered.detail,
        arrival.body.received,
        answered.bytes_out,
        network,
        upload,
        queue,
        backend,
        backend_queue,
        compute,
        download,
        _first_byte_ms(answered, timeline),
        _ms(None if timeline.finished is None else timeline.finished - timeline.received),
    )


def _first_byte_ms(answered: Answered, timeline: Timeline) -> float | None:
    """Of a token stream: what its deadline is about."""
    if not answered.streaming or timeline.first_byte is None:
        return None
    return _ms(timeline.first_byte - timeline.received)


def _ms(seconds: float | None) -> float | None:
    # Not round(), which writes the number out and reads it again.
    return None if seconds is None else int(seconds * 1e6 + 0.5) / 1e3
