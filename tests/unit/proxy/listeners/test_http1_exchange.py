# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 requests become arrivals, and replies and refusals go back."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Arrival, Operation
from proxy.listeners import http1_exchange
from proxy.listeners.http1_exchange import WINDOW
from tests.fakes.http1_site import INFER, until
from tests.fakes.walk import echo, pieces

POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n"


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
    assert reply.headers["Content-Length"] == str(len(sent))
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


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked", b"415"),
        (b"Transfer-Encoding: gzip, chunked", b"501"),
    ],
)
async def test_a_coding_that_is_not_undone_here_is_refused(site, fields, status):
    reply = await site.raw(
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: here\r\nConnection: close\r\n%b\r\n\r\n0\r\n\r\n" % fields
    )
    assert reply.split(b" ")[1] == status


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
    assert reply.status == 429
    assert reply.headers["Retry-After"] == "1"
    assert reply.content_type == "application/problem+json"
    assert json.loads(body)["retry_after_ms"] == 200


async def test_each_piece_is_a_chunk_and_out_before_the_next_is_made(site_with):
    going_on = asyncio.Semaphore(0)

    async def tokens(_: Arrival) -> Reply:
        async def body() -> AsyncIterator[bytes]:
            for token in (b"data: a\n\n", b"data: b\n\n"):
                yield token
                await going_on.acquire()

        return Reply(body=body(), fields=((b"content-type", b"text/event-stream"),))

    site = await site_with(tokens)
    reader, writer = await site.dial()
    writer.write(POST + b"Content-Length: 0\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    for token in (b"data: a\n\n", b"data: b\n\n"):
        assert await reader.readexactly(14) == b"9\r\n%b\r\n" % token
        going_on.release()
    assert await reader.readexactly(5) == b"0\r\n\r\n"


async def broken_events(_: Arrival) -> Reply:
    error = Refused(Reason.STALLED, "nothing came for 30 s")
    return Reply(body=pieces(b"data: a\n\n", error=error), fields=((b"content-type", b"text/event-stream"),))


@pytest.mark.parametrize("tls", [False, True])
async def test_a_token_stream_that_breaks_off_ends_with_an_error_and_without_the_last_chunk(site_with, tmp_path, tls):
    site = await site_with(broken_events, **({"secure": tmp_path} if tls else {}))
    answer = await site.raw(POST + b"Content-Length: 0\r\n\r\n")
    _, _, body = answer.partition(b"\r\n\r\n")
    _, first, _, event, end = body.split(b"\r\n")
    assert first == b"data: a\n\n"
    assert b"event: error\n" in event and b"nothing came for 30 s" in event
    assert end == b""  # of the chunk; the stream's would be 0


async def test_a_client_that_reads_nothing_more_does_not_keep_a_broken_stream_open(site_with, monkeypatch):
    monkeypatch.setattr(http1_exchange, "_FAREWELL_S", 0.05)
    error = Refused(Reason.STALLED, "nothing came for 30 s")

    async def long(_: Arrival) -> Reply:
        body = pieces(*[bytes(1 << 16)] * 40, error=error)
        return Reply(body=body, fields=((b"content-type", b"text/event-stream"),))

    site = await site_with(long)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", site.port))
        await loop.sock_sendall(client, POST + b"Content-Length: 0\r\n\r\n")
        await until(lambda: site.walk.arrivals)
        while site.door.connections and not site.walk.answered[0].bytes_out >= 40 << 16:
            await loop.sock_recv(client, 1 << 16)
        await until(lambda: not site.door.connections)


async def test_to_http_1_0_a_broken_token_stream_is_a_reset(site_with):
    """Its end is the connection's, so a good one would make it whole."""
    site = await site_with(broken_events)
    with pytest.raises(ConnectionResetError):
        await site.raw(b"POST /v2/models/m/infer HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
