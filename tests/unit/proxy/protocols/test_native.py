# SPDX-License-Identifier: Apache-2.0
"""Wire headers to arrivals and back."""

from __future__ import annotations

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Reason, Refused
from inferlane.wire import UNTIL_FIN, Header, Type, decode, encode
from proxy.arrival import Answered, Arrival, Operation
from proxy.protocols.native import error_header, inference, reply_header
from qos.timeline import Timeline
from tests.fakes.walk import CLASS, pieces


def arrival_of(header: Header) -> Arrival:
    return inference(
        header,
        Body.of(b"{}"),
        transport="udp",
        listener="main",
        client="192.0.2.1",
        dscp=46,
        timeline=Timeline(1.0, dispatched=1.001, first_byte=1.004, compute_s=0.002),
    )


def answered() -> Answered:
    arrival = arrival_of(Header(type=Type.REQUEST, request_id=1, model="m"))
    return Answered(arrival=arrival, traffic_class=CLASS, why="", trusted=False, deadline=2.0)


def test_an_arrival_has_what_the_header_says() -> None:
    header = Header(
        type=Type.REQUEST,
        request_id=255,
        model="m",
        version="2",
        class_name="realtime",
        remaining_us=50_000,
        total_length=9,
        json_length=2,
    )
    arrival = arrival_of(header)
    assert (arrival.request_id, arrival.operation) == ("00000000000000ff", Operation.INFER)
    assert (arrival.model, arrival.version, arrival.asked_class) == ("m", "2", "realtime")
    assert (arrival.timeout_s, arrival.json_length, arrival.dscp) == (0.05, 2, 46)


def test_zero_means_not_said() -> None:
    arrival = arrival_of(Header(type=Type.REQUEST, request_id=1, model="m"))
    assert (arrival.timeout_s, arrival.json_length, arrival.asked_class) == (None, None, None)


def test_a_reply_header_survives_the_wire() -> None:
    header = reply_header(1, Reply(body=b"12345", json_length=2), answered(), length=5)
    decoded, _ = decode(encode(header))
    assert (decoded.status, decoded.total_length, decoded.json_length, decoded.dscp) == (200, 5, 2, 46)
    assert (decoded.queue_us, decoded.backend_us, decoded.compute_us) == (1000, 1000, 2000)
    assert decoded.class_name == "interactive"


def test_a_reply_of_unknown_length_and_one_that_nobody_timed() -> None:
    bare = answered()
    bare.arrival.timeline = Timeline(1.0)
    decoded, _ = decode(encode(reply_header(1, Reply(body=pieces(b"x")), bare, length=UNTIL_FIN)))
    assert (decoded.total_length, decoded.queue_us, decoded.compute_us) == (UNTIL_FIN, None, None)


def test_an_error_header_carries_reason_status_and_when_to_come_back() -> None:
    refusal = Refused(Reason.QUEUE_TIMEOUT, "busy", retry_after_s=0.0214, status=529)
    decoded, _ = decode(encode(error_header(1, refusal, answered(), length=7)))
    assert (decoded.type, decoded.reason, decoded.status) == (Type.ERROR, Reason.QUEUE_TIMEOUT.code, 529)
    assert (decoded.retry_after_ms, decoded.total_length) == (21, 7)
