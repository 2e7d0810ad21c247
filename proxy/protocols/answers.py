# SPDX-License-Identifier: Apache-2.0
"""Heads of HTTP replies: Server-Timing, the Inferlane fields, and refusals as problem documents or error events.

Problem documents are RFC 9457's; on OpenAI's paths their `error` is the object that its clients read.
"""

from __future__ import annotations

import math

import msgspec

from backends.messages import Reply
from inferlane.errors import Refused
from proxy.arrival import Answered, Arrival, Operation
from proxy.protocols.openai_http import error_object
from qos.timeline import Timeline

__all__ = ["HeadFields", "error_event", "problem", "refusal_answer", "reply_head", "server_timing"]

HeadFields = list[tuple[bytes, bytes]]


def server_timing(timeline: Timeline) -> bytes:
    """The disjoint parts in ms as a Server-Timing value (W3C Server Timing); b"" when nothing was measured."""
    network, compute = timeline.rtt_s, timeline.compute_s
    queue, backend = timeline.waits()
    if network is not None and queue is not None and backend is not None and compute is None:  # of most, all at once
        return b"network;dur=%.3f, queue;dur=%.3f, backend;dur=%.3f" % (network * 1e3, queue * 1e3, backend * 1e3)
    named = (
        (b"network;dur=%.3f", network),
        (b"queue;dur=%.3f", queue),
        (b"backend;dur=%.3f", backend),
        (b"compute;dur=%.3f", compute),
    )
    return b", ".join([name % (seconds * 1e3) for name, seconds in named if seconds is not None])


def reply_head(reply: Reply, answered: Answered) -> tuple[int, HeadFields]:
    """Status and fields of a reply; content-length only where the body is whole."""
    fields: HeadFields = list(reply.fields)
    if isinstance(reply.body, bytes):
        fields.append((b"content-length", b"%d" % len(reply.body)))
    if reply.json_length is not None:
        fields.append((b"inference-header-content-length", b"%d" % reply.json_length))
    fields += _about(answered)
    return reply.status, fields


def refusal_answer(refusal: Refused, answered: Answered) -> tuple[int, HeadFields, bytes]:
    """Status, fields and problem document of a refusal."""
    body = problem(refusal, answered.arrival.request_id, openai=_is_openai(answered.arrival))
    fields: HeadFields = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        *_about(answered),
    ]
    if refusal.retry_after_s is not None:
        # RFC 9110 section 10.2.3: whole seconds; the exact value is in the document
        fields.append((b"retry-after", b"%d" % math.ceil(refusal.retry_after_s)))
    return refusal.status, fields, body


def problem(refusal: Refused, request_id: str, *, openai: bool = False) -> bytes:
    """The RFC 9457 document. Its type is a name, not an address: nothing has to be fetched to understand it.

    openai: its `error` member is the object of OpenAI's API, else the text of the Open Inference Protocol's.
    """
    document: dict[str, object] = {
        "type": f"urn:inferlane:refused:{refusal.reason.label}",
        "title": refusal.reason.label.replace("_", " "),
        "status": refusal.status,
        "reason": refusal.reason.label,
        "detail": refusal.detail,
        "request_id": request_id,
        # The API's own error member, so that its clients print the detail.
        "error": error_object(refusal) if openai else refusal.detail or refusal.reason.label,
    }
    if refusal.retry_after_s is not None:
        document["retry_after_ms"] = round(refusal.retry_after_s * 1e3)
    return msgspec.json.encode(document)


def error_event(refusal: Refused, request_id: str) -> bytes:
    """The last event of a token stream that breaks off (server-sent events, HTML Living Standard section 9.2).

    OpenAI's clients raise on an `error` member. The empty line before it ends an event that was cut in the middle.
    """
    document = msgspec.json.encode({"error": error_object(refusal), "request_id": request_id})
    return b"\n\nevent: error\ndata: %b\n\n" % document


def _is_openai(arrival: Arrival) -> bool:
    # by its path where the door refused it: nobody knows what it asked for, but whose client it is
    return arrival.operation in (Operation.OPENAI, Operation.OPENAI_MODELS) or arrival.path.startswith("/v1/")


def _about(answered: Answered) -> HeadFields:
    arrival = answered.arrival
    fields: HeadFields = [
        (b"inferlane-class", answered.traffic_class.name.encode()),
        (b"inferlane-dscp", b"%d" % arrival.dscp),
        (b"x-request-id", arrival.request_id.encode()),
    ]
    timing = server_timing(arrival.timeline)
    if timing:
        fields.append((b"server-timing", timing))
    if answered.trusted and answered.endpoint:
        fields.append((b"inferlane-endpoint", answered.endpoint.encode()))
    return fields
