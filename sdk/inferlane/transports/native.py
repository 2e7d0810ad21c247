# SPDX-License-Identifier: Apache-2.0
"""Inference messages of docs/wire.md as the client needs them: request -> header, header and body -> reply. Pure."""

from __future__ import annotations

from inferlane.errors import Reason, Refused
from inferlane.messages import EncodedReply, EncodedRequest, Stages
from inferlane.transfer import refusal
from inferlane.transports.problems import read_problem
from inferlane.wire import Header, Type, microseconds

__all__ = ["read_reply", "request_header"]


def request_header(request: EncodedRequest, now: float, *, total_length: int = 0) -> Header:
    """The header of a request that leaves now. Datagrams count `total_length` themselves."""
    return Header(
        type=Type.REQUEST,
        request_id=request.request_id,
        remaining_us=0 if request.timeout_s is None else max(1, microseconds(request.deadline - now)),
        total_length=total_length,
        json_length=request.json_length or 0,
        class_name=request.class_name,
        model=request.model,
        version=request.version,
    )


def read_reply(header: Header, body: bytes, *, waited_s: float) -> EncodedReply:
    """A whole answer; a refusal is raised. waited_s: from the question until now."""
    if header.type is Type.ERROR:
        raise refusal(header, body)
    if header.type is not Type.REPLY:
        raise Refused(Reason.BACKEND_FAILED, f"the gateway answered with a {header.type.name.lower()}")
    if not 200 <= header.status < 300:  # a backend's own words, handed through
        raise read_problem(header.status, body, retry_after_s=_seconds(header.retry_after_ms, per_second=1e3))
    return EncodedReply(
        body=body,
        json_length=header.json_length or None,
        stages=_stages(header, waited_s),
        served_class=header.class_name,
        dscp_seen=header.dscp,
    )


def _stages(header: Header, waited_s: float) -> Stages:
    queue, backend, compute = _seconds(header.queue_us), _seconds(header.backend_us), _seconds(header.compute_us)
    if queue is None or backend is None:
        return Stages(queue=queue, backend=backend, compute=compute)
    # No smoothed round trip comes with a message: what the gateway did not take, the way there and back did.
    network = max(0.0, waited_s - queue - backend - (compute or 0.0))
    return Stages(network=network, queue=queue, backend=backend, compute=compute)


def _seconds(count: int | None, *, per_second: float = 1e6) -> float | None:
    return None if count is None else count / per_second
