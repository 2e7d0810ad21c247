# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 requests become arrivals; replies, refusals and clients that leave are met on the way back."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Arrival, Operation
from proxy.bind import bind_unix
from proxy.listeners.http1 import WINDOW, Http1Door
from proxy.telemetry import logs
from tests.fakes.http1_site import INFER, Site, until
from tests.fakes.walk import Answer, FakeWalk, echo, never, pieces

POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n"
Sites = Callable[[Answer], Awaitable[Site]]


@pytest_asyncio.fixture
async def site_with() -> AsyncIterator[Sites]:
    sites: list[Site] = []

    async def make(answer: Answer) -> Site:
        site = Site(answer)
        sites.append(site)
        await site.start()
        return site

    yield make
    for site in sites:
        await site.close()


@pytest_asyncio.fixture
async def site(site_with) -> Site:
    return await site_with(echo)


async def test_a_request_becomes_an_arrival_and_the_reply_comes_back(site):
    reply, body = await site.ask(
        f"{INFER}?x=1",
        b"{}tensor",
        Inference_Header_Content_Length="2",
        Inferlane_Class="batch",
        Inferlane_Timeout="50ms",
        Priority="u=1",
        X_Request_Id="r-7",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    (arrival,) = site.walk.arrivals
    assert (reply.status, body) == (200, b"{}tensor")
    assert reply.headers["Inference-Header-Content-Length"] == "2"
    assert reply.headers["X-Request-Id"] == "r-7"
    assert reply.headers["Inferlane-Class"] == "interactive"
    assert reply.headers["Server"] == "inferlane"
    assert (arrival.operation, arrival.model, arrival.path) == (Operation.INFER, "m", f"{INFER}?x=1")
    assert (arrival.transport, arrival.listener, arrival.client) == ("http", "http", "127.0.0.1")
    assert (arrival.asked_class, arrival.timeout_s, arrival.urgency) == ("batch", 0.05, 1)
    assert arrival.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert arrival.json_length == 2
    assert arrival.timeline.received == 5.0
    assert site.walk.answered[0].bytes_out == 8


async def test_what_belongs_to_one_hop_is_not_handed_on(site):
    await site.raw(
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: here\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: gzip\r\n"
        b"Keep-Alive: 5\r\nContent-Length: 2\r\nX-Theirs:  kept \r\n\r\n{}"
    )
    assert site.walk.arrivals[0].fields == ((b"x-theirs", b"kept"),)


async def test_a_chunked_body(site):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"0123456789"
            await asyncio.sleep(0)

    reply, body = await site.ask(body=chunks())
    assert (reply.status, body) == (200, b"0123456789" * 3)
    assert site.walk.arrivals[0].body.declared is None


async def test_a_body_longer_than_the_window(site):
    sent = bytes(range(256)) * (3 * WINDOW // 256)
    reply, body = await site.ask(body=sent)
    assert (reply.status, body) == (200, sent)
    assert site.walk.arrivals[0].body.declared == len(sent)


async def test_a_backend_that_does_not_read_makes_the_client_wait(site_with):
    going_on = asyncio.Event()

    async def slow(arrival: Arrival) -> Reply:
        await going_on.wait()
        return await echo(arrival)

    site = await site_with(slow)
    asking = asyncio.create_task(site.ask(body=bytes(1 << 20)))
    await until(lambda: site.walk.arrivals and site.walk.arrivals[0].body.received >= WINDOW)
    for _ in range(100):
        await asyncio.sleep(0)
    assert site.walk.arrivals[0].body.received < 1 << 20
    going_on.set()
    _, body = await asking
    assert body == bytes(1 << 20)


async def test_a_compressed_body_is_refused(site):
    reply, body = await site.ask(body=gzip.compress(b"{}"), Content_Encoding="gzip")
    assert reply.status == 415
    assert json.loads(body)["detail"] == "send the body without content-encoding"


async def test_a_body_that_grows_beyond_the_limit_is_refused(site):
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(1 << 19)

    reply, body = await site.ask(body=chunks())
    assert reply.status == 413
    assert json.loads(body)["reason"] == "too_large"


async def test_a_body_announced_beyond_the_limit_is_refused_before_it_is_read(site):
    reader, writer = await site.dial()
    writer.write(
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 413 Request Entity Too Large\r\n"
    assert site.walk.arrivals[0].body.received == 0


async def test_a_client_that_waits_for_leave_to_send_gets_it(site):
    reader, writer = await site.dial()
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
    writer.write(head + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert (await reader.read()).endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(
    ("request_line", "status", "reason"),
    [
        (b"GET /nowhere", 404, "not_found"),
        (b"DELETE /v2", 405, "method_not_allowed"),
        (b"GET /v2/%2e%2e/x", 400, "bad_request"),
        (b"GET /v2/../x", 400, "bad_request"),
    ],
)
async def test_a_request_that_is_refused_still_takes_its_walk(site, request_line, status, reason):
    answer = await site.raw(request_line + b" HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["reason"] == reason
    assert len(site.walk.arrivals) == 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Host: here there\r\n", 400),
        (b"Host: here\r\nInferlane-Timeout: soon\r\n", 400),
        (b"Host: here\r\n" + b"X: y\r\n" * 101, 431),
    ],
)
async def test_a_bad_head_is_refused(site, fields, status):
    answer = await site.raw(b"GET /v2 HTTP/1.1\r\nConnection: close\r\n" + fields + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n",  # no Host
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        POST + b"Content-Length: +2\r\n\r\n{}",
        b"GET /v2 HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_answered_and_leaves_no_trace(site, request_bytes):
    stream = io.BytesIO()
    before = logging.getLogger().handlers[:]
    logs.configure("json", "info", stream)
    try:
        answer = await site.raw(request_bytes)
    finally:
        logging.getLogger().handlers[:] = before
    assert answer.startswith(b"HTTP/1.")
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert stream.getvalue() == b""
    assert site.walk.arrivals == []


async def test_a_chunked_body_with_a_broken_frame_never_counts_as_whole(site):
    _, writer = await site.dial()
    writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    await until(lambda: site.walk.arrivals and site.walk.arrivals[0].body.received)
    # aiohttp answers 400 only after the walk, which its deadline ends; here the client loses patience.
    writer.write(b"zz\r\n")
    writer.close()
    await writer.wait_closed()
    await until(lambda: site.walk.cancelled)
    assert not site.walk.arrivals[0].body.complete


async def test_head_gets_the_fields_without_the_body(site_with):
    async def server(_: Arrival) -> Reply:
        return Reply(body=b'{"name":"inferlane"}', fields=((b"content-type", b"application/json"),))

    site = await site_with(server)
    reply, body = await site.ask("/v2", None, "HEAD")
    assert (reply.status, body) == (200, b"")
    assert reply.headers["Content-Length"] == "20"
    assert reply.content_type == "application/json"


async def streamed(_: Arrival) -> Reply:
    return Reply(body=pieces(b"one ", b"two"))


async def test_a_piecewise_reply_comes_in_chunks(site_with):
    site = await site_with(streamed)
    reply, body = await site.ask()
    assert (reply.status, body) == (200, b"one two")
    assert reply.headers["Transfer-Encoding"] == "chunked"
    assert site.walk.answered[0].bytes_out == 7


async def test_a_piecewise_reply_to_http_1_0_ends_with_the_connection(site_with):
    site = await site_with(streamed)
    answer = await site.raw(b"POST /v2/models/m/infer HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\none two")


async def test_a_reply_that_breaks_off_does_not_end_cleanly(site_with):
    async def broken(_: Arrival) -> Reply:
        return Reply(body=pieces(b"half", error=Refused(Reason.BACKEND_FAILED, "it fell over")))

    site = await site_with(broken)
    with pytest.raises(aiohttp.ClientError):
        await site.ask()


async def test_a_refusal_says_when_to_come_back(site_with):
    async def full(_: Arrival) -> Reply:
        raise Refused(Reason.QUEUE_FULL, "1,024 wait already", retry_after_s=0.2)

    site = await site_with(full)
    reply, body = await site.ask()
    assert reply.status == 503
    assert reply.headers["Retry-After"] == "1"
    assert reply.content_type == "application/problem+json"
    assert json.loads(body)["retry_after_ms"] == 200


async def test_a_client_that_leaves_cancels_its_walk(site_with):
    site = await site_with(never)
    _, writer = await site.dial()
    writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
    await until(lambda: site.walk.arrivals)
    writer.close()
    await writer.wait_closed()
    await until(lambda: site.walk.cancelled)


async def test_a_client_that_leaves_in_the_middle_of_its_body_cancels_its_walk(site):
    _, writer = await site.dial()
    writer.write(POST + b"Content-Length: 9\r\n\r\n{}")
    await until(lambda: site.walk.arrivals and site.walk.arrivals[0].body.received)
    writer.close()
    await writer.wait_closed()
    await until(lambda: site.walk.cancelled)


async def test_a_client_that_does_not_read_ends_with_its_connection(site_with):
    async def endless(_: Arrival) -> Reply:
        async def body() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1 << 16)

        return Reply(body=body())

    site = await site_with(endless)
    reader, writer = await site.dial()
    writer.write(POST + b"Content-Length: 0\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    await until(lambda: site.walk.cancelled)


async def test_connections_are_kept_for_the_next_request(site):
    reader, writer = await site.dial()
    for n in range(3):
        writer.write(POST + b"Content-Length: 1\r\n\r\n%d" % n)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1) == b"%d" % n
    assert repr(site.door) == "<Http1Door http: 1 connections, 0 in flight>"


async def test_the_repository_index(site):
    reply, body = await site.ask("/v2/repository/index", b"{}")
    assert reply.status == 200
    assert json.loads(body) == [
        {"name": "digits", "version": "1", "state": "READY", "reason": ""},
        {"name": "faces", "version": "1", "state": "UNAVAILABLE", "reason": ""},
    ]
    reply, _ = await site.ask("/v2/repository/index", None, "GET")
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")


async def test_a_unix_socket(tmp_path: Path):
    walk = FakeWalk(echo)
    door = Http1Door(walk, listener="socket", max_body=100, clock=lambda: 5.0)
    await door.start(bind_unix(tmp_path / "door"))
    connector = aiohttp.UnixConnector(str(tmp_path / "door"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"http://localhost{INFER}", data=b"{}") as reply,
    ):
        assert (reply.status, await reply.read()) == (200, b"{}")
    assert walk.arrivals[0].client == "127.0.0.1"
    await door.close()


async def test_draining_finishes_what_is_in_flight_and_takes_nothing_new(site_with):
    going_on = asyncio.Event()

    async def slow(arrival: Arrival) -> Reply:
        await going_on.wait()
        return await echo(arrival)

    site = await site_with(slow)
    asking = asyncio.create_task(site.ask())
    await until(lambda: site.walk.arrivals)
    site.door.drain()
    with pytest.raises(ConnectionError):
        await site.dial()
    assert not site.door.idle
    going_on.set()
    reply, body = await asking
    assert site.door.idle
    assert (reply.status, body) == (200, b"{}")
    assert reply.headers["Connection"] == "close"


async def test_draining_lets_a_body_arrive_and_its_reply_go_out(site):
    reader, writer = await site.dial()
    writer.write(POST + b"Content-Length: 4\r\n\r\nab")
    await until(lambda: site.walk.arrivals and site.walk.arrivals[0].body.received)
    site.door.drain()
    writer.write(b"cd")
    assert (await reader.read()).endswith(b"\r\n\r\nabcd")


async def test_a_reply_that_began_before_draining_ends_its_connection(site_with):
    going_on = asyncio.Event()

    async def streamed(_: Arrival) -> Reply:
        async def body() -> AsyncIterator[bytes]:
            yield b"one "
            await going_on.wait()
            yield b"two"

        return Reply(body=body())

    site = await site_with(streamed)
    reader, writer = await site.dial()
    writer.write(POST + b"Content-Length: 0\r\n\r\n")
    await reader.readuntil(b"one ")
    site.door.drain()
    going_on.set()
    assert (await reader.read()).endswith(b"two\r\n0\r\n\r\n")


async def test_closing_cuts_off_what_does_not_finish(site_with):
    site = await site_with(never)
    asking = asyncio.create_task(site.ask())
    await until(lambda: site.walk.arrivals)
    await site.door.close()
    with pytest.raises(aiohttp.ClientError):
        await asking
    await until(lambda: site.walk.cancelled)
