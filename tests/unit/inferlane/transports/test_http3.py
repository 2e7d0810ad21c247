# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from aioquic.h3.connection import ErrorCode
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.messages import Stages
from inferlane.transports.http3 import Http3, read_reply, read_server_timing, request_fields
from inferlane.transports.quic import ALPN_H3, client_configuration
from inferlane.transports.sockets import resolve
from proxy.protocols.hints import parse_timeout
from tests.fakes.quic_gateway import quic_gateway

GOOD = {b"server-timing": b"queue;dur=1.5, compute;dur=2", b"inferlane-class": b"batch", b"x-request-id": b"abc"}


@pytest.fixture
async def connected(pair, trust, target_of):
    """Connects to a fake gateway, and closes."""
    opened = []

    async def connect(gateway, *, max_reply=1 << 20):
        target = target_of(gateway.port)
        (address,) = await resolve(target.host, target.port)
        configuration = client_configuration(target, trust, ALPN_H3)
        transport = Http3(address, configuration, dscp=0, authority=target.authority, max_reply=max_reply)
        opened.append(transport)
        await transport.connect()
        return transport

    yield connect
    for transport in opened:
        transport.close()


async def test_a_request_is_the_open_inference_protocol_over_http(pair, connected, ask):
    seen = []

    def answer(asked):
        seen.append(asked)
        asked.respond(200, GOOD, b"reply")

    async with quic_gateway(answer, pair) as gateway:
        transport = await connected(gateway)
        reply = await transport.exchange(ask(b"{}tensor", json_length=2, version="3"))

    assert reply.body == b"reply"
    assert (reply.served_class, reply.request_id, reply.endpoint) == ("batch", "abc", None)
    assert reply.stages == Stages(queue=0.0015, compute=0.002)
    (asked,) = seen
    assert asked.body == b"{}tensor"
    assert asked.fields[b":path"] == b"/v2/models/magika/versions/3/infer"
    assert asked.fields[b"content-length"] == b"8"


async def test_a_large_body_goes_both_ways(pair, connected, ask):
    body = bytes(range(256)) * 8192

    async with quic_gateway(lambda asked: asked.respond(200, {}, asked.body), pair) as gateway:
        transport = await connected(gateway, max_reply=len(body))
        reply = await transport.exchange(ask(body))

    assert reply.body == body


async def test_many_requests_share_a_connection(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.respond(200, {}, asked.body), pair) as gateway:
        transport = await connected(gateway)
        bodies = [b"%d" % n for n in range(300)]  # more than the 128 streams that a connection starts with
        replies = await asyncio.gather(*(transport.exchange(ask(body)) for body in bodies))

    assert [reply.body for reply in replies] == bodies
    assert len(gateway.given_up._queue) == 0


async def test_a_refusal_tells_its_reason(pair, connected, ask):
    problem = b'{"reason": "unknown_model", "detail": "no model magika"}'

    async with quic_gateway(lambda asked: asked.respond(404, {b"retry-after": b"2"}, problem), pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(Refused, match="unknown_model: no model magika") as caught:
            await transport.exchange(ask())

    assert (caught.value.status, caught.value.retry_after_s) == (404, 2.0)
    assert transport.alive


async def test_an_interim_reply_is_no_reply(pair, connected, ask):
    def answer(asked):
        asked.connection.http.send_headers(asked.stream_id, [(b":status", b"103")])
        asked.respond(200, {}, b"the real one")

    async with quic_gateway(answer, pair) as gateway:
        transport = await connected(gateway)
        assert (await transport.exchange(ask())).body == b"the real one"


async def test_cancelling_tells_the_gateway(pair, connected, ask):
    asked = asyncio.Queue()

    async with quic_gateway(asked.put_nowait, pair) as gateway:
        transport = await connected(gateway)
        waiting = asyncio.create_task(transport.exchange(ask()))
        await asked.get()
        waiting.cancel()

        assert await gateway.given_up.get() == (0, ErrorCode.H3_REQUEST_CANCELLED)
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert "0 in flight" in repr(transport)


async def test_a_reply_after_the_cancellation_finds_nobody(pair, connected, ask):
    asked = asyncio.Queue()

    async with quic_gateway(asked.put_nowait, pair) as gateway:
        transport = await connected(gateway)
        waiting = asyncio.create_task(transport.exchange(ask()))
        late = await asked.get()
        waiting.cancel()
        late.respond(200, {}, b"too late")  # before the gateway can hear of it
        await asyncio.wait([waiting])
        gateway.answer = lambda asked: asked.respond(200, {}, b"in time")

        assert (await transport.exchange(ask())).body == b"in time"


@pytest.mark.parametrize(
    ("code", "expected", "reason"),
    [
        (ErrorCode.H3_REQUEST_REJECTED, Refused, Reason.DRAINING),
        (ErrorCode.H3_INTERNAL_ERROR, ConnectionFailed, None),
    ],
)
async def test_a_reset_reply_is_no_clean_end(pair, connected, ask, code, expected, reason):
    async with quic_gateway(lambda asked: asked.reset(code), pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(expected) as caught:
            await transport.exchange(ask())

    assert getattr(caught.value, "reason", None) is reason
    assert transport.alive


async def test_a_reply_beyond_the_bound_is_stopped(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.respond(200, {}, bytes(5001)), pair) as gateway:
        transport = await connected(gateway, max_reply=5000)
        with pytest.raises(Refused, match="longer than 5000 bytes"):
            await transport.exchange(ask())


async def test_a_connection_that_ends_takes_its_requests_along(pair, connected, ask):
    asked = asyncio.Queue()

    async with quic_gateway(asked.put_nowait, pair) as gateway:
        transport = await connected(gateway)
        waiting = [asyncio.create_task(transport.exchange(ask())) for _ in range(2)]
        await asked.get()
        await asked.get()
        gateway.close_connections(0x100, "going home")

        outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(each, ConnectionFailed) and "going home" in str(each) for each in outcomes)
    assert not transport.alive
    with pytest.raises(ConnectionFailed, match="going home"):
        await transport.exchange(ask())


async def test_garbage_on_a_stream_ends_the_connection_and_nothing_hangs(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.send(b"\x00\xff garbage"), pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(ConnectionFailed):
            await transport.exchange(ask())


def test_names_are_quoted_and_fields_only_there_where_they_are_given(ask):
    fields = dict(request_fields(ask(model="a/b c", class_name=None, timeout_s=None), b"host:1", 0.0))

    assert fields[b":path"] == b"/v2/models/a%2Fb%20c/infer"
    assert fields[b"content-type"] == b"application/json"
    assert not {b"inferlane-class", b"inferlane-timeout", b"inference-header-content-length"} & fields.keys()


def test_the_gateway_is_told_what_is_left_of_the_time(ask):
    fields = dict(request_fields(ask(json_length=2, started=100.0, timeout_s=0.05), b"host:1", 100.01))

    assert fields[b"inferlane-timeout"] == b"40000us"
    assert fields[b"inferlane-class"] == b"realtime"
    assert fields[b"inference-header-content-length"] == b"2"
    assert fields[b"x-request-id"] == b"0000000000000007"


@pytest.mark.parametrize("timeout_s", [1e-9, 0.05, 998.9, 999.5, 3600.0, 1e300])
def test_the_gateway_can_read_any_timeout(ask, timeout_s):
    told = dict(request_fields(ask(started=0.0, timeout_s=timeout_s), b"", 0.0))[b"inferlane-timeout"]

    assert parse_timeout(told) == pytest.approx(min(timeout_s, 999_999_999), rel=0.01, abs=1e-6)


@pytest.mark.parametrize("value", [b"", b"-1", b"x", b"9" * 5000])
def test_a_json_length_that_is_no_number_is_none(value):
    assert read_reply({b":status": b"200", b"inference-header-content-length": value}, b"").json_length is None


@pytest.mark.parametrize(
    ("value", "seen"), [(b"46", 46), (b"0", 0), (b"64", None), (b"046", None), (b"EF", None), (b"", None)]
)
def test_the_dscp_that_the_gateway_saw_is_read(value, seen):
    assert read_reply({b":status": b"200", b"inferlane-dscp": value}, b"").dscp_seen == seen


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", Stages()),
        (b"network;dur=0.5,queue;dur=0", Stages(network=0.0005, queue=0.0)),
        (b'cdn;desc="a, b";dur=3, backend;dur=4', Stages(backend=0.004)),
        (b"queue, compute;dur=x, backend;dur=1e400", Stages()),
    ],
)
def test_server_timing_is_read_as_far_as_it_is_ours(value, expected):
    assert read_server_timing(value) == expected


@given(st.binary(max_size=80))
def test_any_server_timing_is_read(value):
    assert isinstance(read_server_timing(value), Stages)
