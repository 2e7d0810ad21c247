# SPDX-License-Identifier: Apache-2.0
"""What remains of a request when it is over: its counts and its one canonical log line."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import structlog

from proxy.arrival import Answered, Operation
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
        self._diagnosis = Diagnosis()
        self._clock = clock
        self.use_log_level()

    def use_log_level(self) -> None:
        """Logging was configured, maybe anew."""
        self._log = structlog.get_logger("inferlane.requests").bind()
        # 20 values are not worth gathering for a line that nobody will write.
        self._logs = self._log.is_enabled_for(logging.INFO)

    def request_finished(self, answered: Answered, *, status: int, reason: str) -> None:
        """Once a request, when its answer is out or its client has left. reason: ok, or a Reason's label."""
        arrival = answered.arrival
        parts = arrival.timeline.parts()
        self._requests.finished(answered, parts, reason=reason)
        # Health and metadata cost no place and promise nothing; where they are refused somebody should look.
        if arrival.operation is Operation.INFER or arrival.operation is Operation.OPENAI or reason != "ok":
            self._diagnosis.observe(answered, arrival.timeline, reason)
        if self._logs:
            self._log.info("request_finished", **_line(answered, parts, status, reason))

    def first_piece(self, answered: Answered, seconds: float) -> None:
        """The first piece of a token stream is out. seconds: since its request was received."""
        self._requests.first_piece(answered, seconds)

    def piece_sent(self, answered: Answered, gap_s: float) -> None:
        """A later piece of a token stream is out. gap_s: seconds since the one before."""
        self._requests.piece_sent(answered, gap_s)

    async def diagnose(self) -> Report:
        """How the promises stand, for /v1/diagnose. Requests go on between one promise and the next."""
        promises = []
        for promise in self._diagnosis.promises(self._clock()):
            promises.append(promise)
            await asyncio.sleep(0)
        return report(promises)


def _line(answered: Answered, parts: Parts, status: int, reason: str) -> dict[str, Any]:
    arrival = answered.arrival
    timeline = arrival.timeline
    return {
        "request_id": arrival.request_id,
        "traceparent": arrival.traceparent,
        "listener": arrival.listener,
        "transport": arrival.transport,
        "client": arrival.client,
        "dscp": dscp_name(arrival.dscp),
        "class": answered.traffic_class.name,
        "why": answered.why,
        "operation": arrival.operation.value,
        "model": arrival.model,
        "pool": answered.pool,
        "endpoint": answered.endpoint,
        "status": status,
        "reason": reason,
        "attempts": answered.attempts,
        "hedged": answered.hedged,
        "detail": answered.detail,
        "bytes_in": arrival.body.received,
        "bytes_out": answered.bytes_out,
        "network_ms": _ms(parts.network),
        "upload_ms": _ms(parts.upload),
        "queue_ms": _ms(parts.queue),
        "backend_ms": _ms(parts.backend),
        "backend_queue_ms": _ms(parts.backend_queue),
        "compute_ms": _ms(parts.compute),
        "download_ms": _ms(parts.download),
        "first_byte_ms": _first_byte_ms(answered, timeline),
        "total_ms": _ms(None if timeline.finished is None else timeline.finished - timeline.received),
    }


def _first_byte_ms(answered: Answered, timeline: Timeline) -> float | None:
    """Of a token stream: what its deadline is about."""
    if not answered.streaming or timeline.first_byte is None:
        return None
    return _ms(timeline.first_byte - timeline.received)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
