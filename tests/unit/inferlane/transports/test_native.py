# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from inferlane.errors import Reason, Refused
from inferlane.transports.native import read_reply, request_header
from inferlane.wire import UNKNOWN_US, Header, Type, decode, encode


def test_a_request_carries_what_steers_it(ask):
    header = request_header(ask(request_id=9, json_length=2, version="3", started=100.0, timeout_s=0.05), 100.01)

    assert header == Header(
        type=Type.REQUEST,
        request_id=9,
        remaining_us=40_000,
        json_length=2,
        class_name="realtime",
        model="magika",
        version="3",
    )


@pytest.mark.parametrize(("timeout_s", "remaining_us"), [(None, 0), (0.001, 1), (1.0, 990_000), (1e9, UNKNOWN_US - 1)])
def test_the_remaining_time_is_told_only_where_it_is_given(ask, timeout_s, remaining_us):
    assert request_header(ask(started=100.0, timeout_s=timeout_s), 100.01).remaining_us == remaining_us


def test_a_reply_tells_its_stages_and_its_class():
    header = Header(
        type=Type.REPLY,
        request_id=1,
        status=200,
        json_length=2,
        total_length=4,
        class_name="batch",
        queue_us=1000,
        backend_us=2000,
        compute_us=3000,
        dscp=10,
    )

    reply = read_reply(header, b"{}xx", waited_s=0.010)

    assert (reply.body, reply.json_length, reply.served_class, reply.dscp_seen) == (b"{}xx", 2, "batch", 10)
    assert (reply.stages.queue, reply.stages.backend, reply.stages.compute) == (0.001, 0.002, 0.003)
    assert reply.stages.network == pytest.approx(0.004)


def test_what_was_not_measured_is_none():
    reply = read_reply(Header(type=Type.REPLY, request_id=1, status=200, queue_us=5), b"", waited_s=1.0)

    assert (reply.stages.network, reply.stages.backend, reply.stages.compute) == (None, None, None)
    assert reply.json_length is None


def test_an_error_is_a_refusal():
    header = Header(
        type=Type.ERROR, request_id=1, status=503, reason=Reason.QUEUE_FULL.code, retry_after_ms=250, total_length=1
    )
    header, _ = decode(encode(header))

    with pytest.raises(Refused, match="queue_full: come back") as caught:
        read_reply(header, b'{"detail": "come back"}', waited_s=0.0)
    assert caught.value.retry_after_s == 0.25


def test_a_backends_own_error_is_a_refusal_too():
    with pytest.raises(Refused, match="not_found: no such model") as caught:
        read_reply(Header(type=Type.REPLY, request_id=1, status=404), b'{"error": "no such model"}', waited_s=0.0)
    assert caught.value.status == 404


def test_a_message_that_answers_nothing_is_the_gateways_fault():
    with pytest.raises(Refused, match="answered with a pong"):
        read_reply(Header(type=Type.PONG, request_id=1), b"", waited_s=0.0)
