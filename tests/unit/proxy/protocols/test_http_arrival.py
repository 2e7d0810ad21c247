# SPDX-License-Identifier: Apache-2.0
"""Heads become arrivals; whatever is wrong is the arrival's refusal, never an exception."""

from __future__ import annotations

from backends.body import Body
from backends.messages import Fields
from inferlane.errors import Reason, Refused
from proxy.arrival import Operation
from proxy.protocols.fields import RequestHead
from proxy.protocols.http_arrival import Origin, arrival
from qos.timeline import Timeline

ORIGIN = Origin(
    transport="h3", listener="main", client="192.0.2.1", dscp=46, timeline=Timeline(1.0, rtt_s=0.001), max_body=1000
)


def head(path: bytes = b"/v2/models/m/infer", *, length: int | None = None, fields: Fields = ()) -> RequestHead:
    return RequestHead(b"POST", path, b"localhost", length, fields)


def test_a_request_keeps_its_origin_its_target_and_its_fields() -> None:
    body, fields = Body.of(b"{}"), ((b"x-request-id", b"mine"), (b"inferlane-class", b"realtime"))
    arrived = arrival(head(fields=fields), body, ORIGIN)
    assert arrived.refusal is None
    assert (arrived.transport, arrived.listener, arrived.client, arrived.dscp) == ("h3", "main", "192.0.2.1", 46)
    assert (arrived.operation, arrived.model, arrived.path) == (Operation.INFER, "m", "/v2/models/m/infer")
    assert (arrived.request_id, arrived.asked_class, arrived.fields) == ("mine", "realtime", fields)
    assert arrived.body is body
    assert arrived.timeline.rtt_s == 0.001


def test_a_request_without_an_id_gets_one_of_its_own() -> None:
    ids = {arrival(head(), Body.of(b""), ORIGIN).request_id for _ in range(200)}
    assert len(ids) == 200
    assert {len(each) for each in ids} == {16}


def test_what_is_wrong_becomes_the_refusal() -> None:
    cases = {
        Reason.NOT_FOUND: head(b"/nowhere"),
        Reason.TOO_LARGE: head(length=1001),
        Reason.BAD_REQUEST: head(fields=((b"inferlane-timeout", b"soon"),)),
    }
    for reason, request in cases.items():
        refusal = arrival(request, Body.of(b""), ORIGIN).refusal
        assert refusal is not None
        assert refusal.reason is reason


def test_a_head_that_hygiene_refused_is_an_arrival_too() -> None:
    refusal = Refused(Reason.BAD_REQUEST, "two hosts")
    arrived = arrival(refusal, Body.of(b""), ORIGIN)
    assert arrived.refusal is refusal
    assert (arrived.path, arrived.model, arrived.fields) == ("", "", ())


def test_a_request_that_names_its_model_in_its_body_arrives_without_one() -> None:
    arrived = arrival(head(b"/v1/chat/completions"), Body.of(b"{}"), ORIGIN)
    assert arrived.refusal is None
    assert (arrived.operation, arrived.model, arrived.path) == (Operation.OPENAI, "", "/v1/chat/completions")
