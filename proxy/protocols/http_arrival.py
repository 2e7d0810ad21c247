# SPDX-License-Identifier: Apache-2.0
"""A clean HTTP request head, of any HTTP version, becomes an arrival; what is wrong with it becomes its refusal."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from backends.body import Body
from backends.messages import Fields
from inferlane.errors import Reason, Refused
from proxy.arrival import Arrival, Operation
from proxy.protocols.fields import RequestHead
from proxy.protocols.oip_http import Head, Target, head, target
from qos.timeline import Timeline

__all__ = ["Origin", "arrival"]

_NOWHERE = Target(Operation.UNKNOWN)
_NO_FIELDS: Fields = ()
_UNSTEERED = Head()
_IDS_AT_ONCE = 64  # one look at the kernel's random numbers costs as much as making the rest of an arrival


@dataclass(slots=True, kw_only=True)
class Origin:
    """Where a request came in."""

    transport: str
    listener: str
    client: str
    dscp: int
    timeline: Timeline
    max_body: int


def arrival(request: RequestHead | Refused, body: Body, origin: Origin) -> Arrival:
    """A head that hygiene passed, or the refusal of one that it did not: both are answered and recorded alike."""
    path, fields, steering, asked, refusal = "", _NO_FIELDS, _UNSTEERED, _NOWHERE, None
    if isinstance(request, Refused):
        refusal = request
    else:
        path, fields = request.path.decode("ascii"), request.fields
        try:
            steering = head(fields)
            asked = target(request.method, request.path)
            _check_length(request.content_length, origin.max_body)
        except Refused as error:
            refusal = error
    return Arrival(
        request_id=steering.request_id or next(_request_ids),
        transport=origin.transport,
        listener=origin.listener,
        client=origin.client,
        dscp=origin.dscp,
        path=path,
        operation=asked.operation,
        model=asked.model,
        version=asked.version,
        asked_class=steering.asked_class,
        urgency=steering.urgency,
        timeout_s=steering.timeout_s,
        traceparent=steering.traceparent,
        fields=fields,
        body=body,
        json_length=steering.json_length,
        timeline=origin.timeline,
        refusal=refusal,
    )


def _new_ids() -> Iterator[str]:
    while True:
        many = secrets.token_hex(8 * _IDS_AT_ONCE)
        for start in range(0, len(many), 16):
            yield many[start : start + 16]


_request_ids = _new_ids()


def _check_length(declared: int | None, max_body: int) -> None:
    if declared is not None and declared > max_body:
        raise Refused(Reason.TOO_LARGE, f"{declared} bytes; this listener takes {max_body}")
