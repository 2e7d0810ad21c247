# SPDX-License-Identifier: Apache-2.0
"""Wire headers of the native protocol (docs/wire.md) to arrivals, and replies back to wire headers."""

from __future__ import annotations

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Refused
from inferlane.wire import Header, Type, microseconds
from proxy.arrival import Answered, Arrival, Operation
from qos.timeline import Timeline

__all__ = ["error_header", "inference", "reply_header"]


def inference(  # noqa: PLR0913  the facts of an arrival, each from another layer
    header: Header, body: Body, *, transport: str, listener: str, client: str, dscp: int, timeline: Timeline
) -> Arrival:
    """The arrival that a request's first header and its body make."""
    return Arrival(
        request_id=f"{header.request_id:016x}",
        transport=transport,
        listener=listener,
        client=client,
        dscp=dscp,
        path="",
        operation=Operation.INFER,
        model=header.model or "",
        version=header.version,
        asked_class=header.class_name,
        timeout_s=header.remaining_us / 1e6 if header.remaining_us else None,
        body=body,
        json_length=header.json_length or None,
        timeline=timeline,
    )


def reply_header(request_id: int, reply: Reply, answered: Answered, *, length: int) -> Header:
    """The head of a reply; a backend's own error status travels as it is."""
    parts = answered.arrival.timeline.parts()
    return Header(
        type=Type.REPLY,
        request_id=request_id,
        status=reply.status,
        total_length=length,
        json_length=reply.json_length or 0,
        class_name=answered.traffic_class.name,
        queue_us=_us(parts.queue),
        backend_us=_us(parts.backend),
        compute_us=_us(parts.compute),
        dscp=answered.arrival.dscp,
    )


def error_header(request_id: int, refusal: Refused, answered: Answered, *, length: int = 0) -> Header:
    """The head of a refusal; its problem document follows."""
    retry_after_s = refusal.retry_after_s
    return Header(
        type=Type.ERROR,
        request_id=request_id,
        reason=refusal.reason.code,
        status=refusal.status,
        total_length=length,
        class_name=answered.traffic_class.name,
        retry_after_ms=None if retry_after_s is None else round(retry_after_s * 1e3),
        dscp=answered.arrival.dscp,
    )


def _us(seconds: float | None) -> int | None:
    return None if seconds is None else microseconds(seconds)
