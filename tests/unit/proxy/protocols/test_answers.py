# SPDX-License-Identifier: Apache-2.0
"""Reply heads and problem documents say what DESIGN.md promises to applications."""

from __future__ import annotations

import msgspec
import pytest

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Arrival, Operation
from proxy.protocols.answers import error_event, problem, refusal_answer, reply_head, server_timing
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass
from tests.fakes.walk import pieces

CLASS = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=0.05, queue_s=0.02)


def answered(*, trusted: bool = False) -> Answered:
    timeline = Timeline(10.0, dispatched=10.002, first_byte=10.010, rtt_s=0.0005, compute_s=0.006)
    arrival = Arrival(
        request_id="r-1",
        transport="h3",
        listener="main",
        client="127.0.0.1",
        dscp=46,
        path="/v2",
        operation=Operation.INFER,
        body=Body.of(b""),
        timeline=timeline,
    )
    return Answered(
        arrival=arrival, traffic_class=CLASS, why="", trusted=trusted, deadline=11.0, pool="p", endpoint="onnx:m"
    )


def test_server_timing_has_disjoint_parts_in_ms() -> None:
    timing = server_timing(answered().arrival.timeline)
    assert timing == b"network;dur=0.500, queue;dur=2.000, backend;dur=2.000, compute;dur=6.000"


def test_server_timing_leaves_out_what_nobody_measured() -> None:
    assert server_timing(Timeline(1.0)) == b""
    assert server_timing(Timeline(1.0, dispatched=1.5)) == b"queue;dur=500.000"


def test_a_reply_head_carries_length_json_length_class_and_id() -> None:
    reply = Reply(body=b"12345", json_length=2, fields=((b"content-type", b"application/octet-stream"),))
    status, fields = reply_head(reply, answered())
    head = dict(fields)
    assert status == 200
    assert head[b"content-length"] == b"5"
    assert head[b"inference-header-content-length"] == b"2"
    assert head[b"inferlane-class"] == b"realtime"
    assert head[b"x-request-id"] == b"r-1"
    assert head[b"inferlane-dscp"] == b"46"
    assert b"inferlane-endpoint" not in head


def test_a_piecewise_reply_has_no_length_and_a_trusted_client_sees_the_endpoint() -> None:
    head = dict(reply_head(Reply(body=pieces(b"x")), answered(trusted=True))[1])
    assert b"content-length" not in head
    assert head[b"inferlane-endpoint"] == b"onnx:m"


def test_a_refusal_is_a_problem_document_with_its_reason() -> None:
    refusal = Refused(Reason.QUEUE_TIMEOUT, "no place within 20 ms", retry_after_s=0.25)
    status, fields, body = refusal_answer(refusal, answered())
    head, document = dict(fields), msgspec.json.decode(body)
    assert (status, head[b"content-type"], head[b"retry-after"]) == (429, b"application/problem+json", b"1")
    assert int(head[b"content-length"]) == len(body)
    assert head[b"inferlane-dscp"] == b"46"
    assert document["reason"] == "queue_timeout"
    assert document["detail"] == "no place within 20 ms"
    assert document["retry_after_ms"] == 250
    assert document["request_id"] == "r-1"


def test_a_refusal_without_a_time_to_come_back_names_none() -> None:
    _, fields, _ = refusal_answer(Refused(Reason.NOT_FOUND, "no"), answered())
    assert b"retry-after" not in dict(fields)
    assert "retry_after_ms" not in msgspec.json.decode(problem(Refused(Reason.NOT_FOUND), "r"))


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        (Operation.OPENAI, "/v1/chat/completions"),
        (Operation.OPENAI_MODELS, "/v1/models"),
        (Operation.UNKNOWN, "/v1/files"),
    ],
)
def test_on_openais_paths_the_error_is_the_object_that_its_clients_read(operation: Operation, path: str) -> None:
    asked = answered()
    asked.arrival.operation, asked.arrival.path = operation, path
    _, _, body = refusal_answer(Refused(Reason.QUEUE_FULL, "too many"), asked)
    document = msgspec.json.decode(body)
    assert document["error"] == {
        "message": "too many",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }
    assert (document["reason"], document["status"]) == ("queue_full", 429)


def test_elsewhere_it_is_the_text_of_the_other_api() -> None:
    assert msgspec.json.decode(refusal_answer(Refused(Reason.NOT_FOUND, "no"), answered())[2])["error"] == "no"


def test_the_last_event_of_a_broken_stream_stands_alone() -> None:
    event = error_event(Refused(Reason.STALLED, "silent for 15 s"), "r-1")
    cut = b'data: {"half' + event
    lines = cut.split(b"\n")
    assert lines[:3] == [b'data: {"half', b"", b"event: error"]
    assert lines[4:] == [b"", b""]
    document = msgspec.json.decode(lines[3].removeprefix(b"data: "))
    assert document["error"]["message"] == "silent for 15 s"
    assert (document["error"]["code"], document["request_id"]) == ("stalled", "r-1")
