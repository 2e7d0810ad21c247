# SPDX-License-Identifier: Apache-2.0
"""What remains of a request when it is over: its counts and its one canonical log line."""

from __future__ import annotations

import logging
from typing import Any

import structlog

from proxy.arrival import Answered
from proxy.telemetry.metrics import Metrics
from qos.dscp import dscp_name
from qos.timeline import Parts

__all__ = ["Telemetry"]


class Telemetry:
    """The pipeline's way to tell what happened. Made after logging is configured: it asks for the level then."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.use_log_level()

    def use_log_level(self) -> None:
        """Logging was configured, maybe anew."""
        self._log = structlog.get_logger("inferlane.requests").bind()
        # 20 values are not worth gathering for a line that nobody will write.
        self._logs = self._log.is_enabled_for(logging.INFO)

    def request_finished(self, answered: Answered, *, status: int, reason: str) -> None:
        """Once a request, when its answer is out or its client has left. reason: ok, or a Reason's label."""
        parts = answered.arrival.timeline.parts()
        self._metrics.request_finished(answered, parts, reason=reason)
        if self._logs:
            self._log.info("request_finished", **_line(answered, parts, status, reason))


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
        "detail": answered.detail,
        "bytes_in": arrival.body.received,
        "bytes_out": answered.bytes_out,
        "network_ms": _ms(parts.network),
        "queue_ms": _ms(parts.queue),
        "backend_ms": _ms(parts.backend),
        "compute_ms": _ms(parts.compute),
        "total_ms": _ms(None if timeline.finished is None else timeline.finished - timeline.received),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
