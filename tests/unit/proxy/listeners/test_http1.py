# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 connections: who may stay, who is told what, and who is cut off."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from backends.messages import Reply
from proxy.arrival import Arrival
from proxy.bind import bind_unix
from proxy.listeners import http1
from proxy.listeners.http1 import Http1Door, Http1Plan
from proxy.listeners.http1_exchange import WINDOW
from proxy.telemetry import logs
from tests.fakes.http1_site import INFER, until
from tests.fakes.walk import BATCH, REALTIME, FakeWalk, by_name, echo, never, policing

AWAITED = 700 * 1024
"""Of a body: more than is read ahead, and no more than the kernel takes. A FIN behind that would not be here."""
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n"


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
    plan = Http1Plan(listener="socket", transport="http", max_body=100)
    door = Http1Door(walk, plan, clock=lambda: 5.0)
    door.start(bind_unix(tmp_path / "door"))
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
    await until(lambda: site.door.idle)
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


async def test_over_tls_it_tells_of_http_3_at_the_same_port(site_with, tmp_path):
    site = await site_with(echo, secure=tmp_path, transport="h1", h3=True)
    reply, body = await site.ask(body=bytes(1 << 20))
    assert (reply.status, len(body)) == (200, 1 << 20)
    assert reply.headers["Alt-Svc"] == f'h3=":{site.port}"; ma=86400'
    assert site.walk.arrivals[0].transport == "h1"
    assert (site.door.handshakes, site.door.connections) == (1, 1)


async def test_without_http_3_there_is_no_alternative(site):
    reply, _ = await site.ask()
    assert "Alt-Svc" not in reply.headers
    assert site.door.handshakes == 0


async def test_who_speaks_no_tls_is_counted_and_forgotten(site_with, tmp_path):
    site = await site_with(echo, secure=tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"GET /v2 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"HTTP" not in await reader.read()
    writer.close()
    await until(lambda: site.door.connections_dropped)
    assert site.door.connections_dropped == {"handshake_failed": 1}
    assert (site.door.connections, site.walk.arrivals) == (0, [])


async def test_a_handshake_that_does_not_go_on_is_given_up(site_with, tmp_path, monkeypatch):
    monkeypatch.setattr(http1, "HANDSHAKE_S", 0.05)
    site = await site_with(echo, secure=tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"\x16\x03\x01")
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    await until(lambda: site.door.connections_dropped)
    assert site.door.connections_dropped == {"handshake_failed": 1}


async def test_a_head_that_comes_drop_by_drop_ends_its_connection(site, monkeypatch):
    monkeypatch.setattr(http1, "_LOOK_S", 0.001)
    reader, writer = await site.dial()
    for part in (POST, b"X: y\r\n"):
        writer.write(part)
        await until(lambda: any(each.head_since is not None for each in site.door._connections.values()))
        site.now += http1.HEAD_S / 2
    assert await reader.read() == b""
    assert site.door.connections_dropped == {"slow_head": 1}
    assert site.walk.arrivals == []


@pytest.mark.parametrize("path", ["/v2/repository/index", INFER])
async def test_after_its_answer_a_connection_may_be_idle_for_longer_than_a_head_takes(site, monkeypatch, path):
    monkeypatch.setattr(http1, "_LOOK_S", 0.001)
    reader, writer = await site.dial()
    for _ in range(2):
        writer.write(b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}" % path.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        site.now += 2 * http1.HEAD_S
        await asyncio.sleep(0.01)
    assert site.door.connections_dropped == {}


async def test_a_body_may_take_longer_than_a_head(site, monkeypatch):
    monkeypatch.setattr(http1, "_LOOK_S", 0.001)
    reader, writer = await site.dial()
    writer.write(POST + b"Content-Length: 4\r\n\r\n")
    await until(lambda: site.walk.arrivals)
    for part in (b"ab", b"cd"):
        site.now += 2 * http1.HEAD_S
        await asyncio.sleep(0.01)
        writer.write(part)
    assert (await reader.readuntil(b"abcd")).startswith(b"HTTP/1.1 200 ")
    assert site.door.connections_dropped == {}


async def test_the_longest_idle_connection_makes_room_for_a_new_one(site_with):
    site = await site_with(echo, most_connections=2)
    oldest, _ = await site.dial()
    await until(lambda: site.door.connections == 1)
    other, writer = await site.dial()
    await until(lambda: site.door.connections == 2)
    newest, newest_writer = await site.dial()
    assert await oldest.read() == b""
    for reader, each in ((other, writer), (newest, newest_writer)):
        each.write(POST + b"Content-Length: 0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert site.door.connections_dropped == {"made_room": 1}


async def test_closing_ends_handshakes_too(site_with, tmp_path):
    site = await site_with(echo, secure=tmp_path)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    await until(lambda: site.door._welcoming)
    await site.door.close()
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    assert site.door._held == set()


async def test_when_all_are_busy_a_newcomer_is_turned_away(site_with):
    site = await site_with(never, most_connections=1)
    _, writer = await site.dial()
    writer.write(POST + b"Content-Length: 0\r\n\r\n")
    await until(lambda: site.walk.arrivals)
    newcomer, _ = await site.dial()
    with suppress(ConnectionResetError):
        assert await newcomer.read() == b""
    assert site.door.connections_dropped == {"full": 1}
    assert site.walk.cancelled == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_leaves_while_nobody_reads_its_body_cancels_its_walk(site_with, tmp_path, tls, monkeypatch):
    monkeypatch.setattr(http1, "_LOOK_S", 0.01)
    site = await site_with(never, **({"secure": tmp_path} if tls else {}))
    _, writer = await site.dial()
    writer.write(POST + b"Content-Length: 1048576\r\n\r\n" + bytes(AWAITED))
    await until(lambda: site.walk.arrivals and site.walk.arrivals[0].body.received >= WINDOW)
    for _ in range(100):
        await asyncio.sleep(0)  # until nothing is read any more
    writer.transport.abort()
    await until(lambda: site.walk.cancelled)


async def test_pipelined_requests_are_answered_in_order(site):
    reader, writer = await site.dial()
    writer.write(b"".join(POST + b"Content-Length: 1\r\n\r\n%d" % n for n in range(5)))
    for n in range(5):
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(1) == b"%d" % n


async def test_each_request_s_reply_carries_its_class_s_mark(site_with):
    site = await site_with(echo, marks=policing(), listener="main")
    site.walk.judge = by_name
    reader, writer = await site.dial()
    marks = []
    for name in (b"batch", b"realtime", b"batch"):
        writer.write(POST + b"Inferlane-Class: " + name + b"\r\nContent-Length: 2\r\n\r\n{}")
        await reader.readuntil(b"{}")
        (connection,) = site.door._connections.values()
        marks.append(
            (
                connection.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS),
                connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY),
            )
        )
    assert marks == [(BATCH.dscp << 2, 0), (REALTIME.dscp << 2, 6), (BATCH.dscp << 2, 0)]
    assert site.walk.arrivals[0].timeline.rtt_s is not None


async def test_before_its_first_request_a_connection_carries_its_listener_s_mark(site_with):
    site = await site_with(echo, marks=policing(), listener="main")
    await site.dial()
    await until(lambda: site.door.connections)
    (connection,) = site.door._connections.values()
    assert connection.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == REALTIME.dscp << 2


async def test_draining_waits_until_the_last_reply_is_out(site_with):
    """The client reads late: then what is left of its reply is still here when its walk is over."""
    going_on = asyncio.Event()

    async def long(_: Arrival) -> Reply:
        await going_on.wait()
        return Reply(body=bytes(8 << 20))

    site = await site_with(long)
    reader, writer = await site.dial()
    writer.write(POST + b"Content-Length: 0\r\n\r\n")
    await until(lambda: site.walk.arrivals)
    site.door.drain()
    going_on.set()
    await asyncio.sleep(0.01)
    assert not site.door.idle
    assert len(await reader.read()) > 8 << 20
    await until(lambda: site.door.idle)


async def test_retiring_gives_every_connection_one_more_answer_and_closes_those_that_rest(site, monkeypatch):
    resting, asking = await site.dial(), await site.dial()
    site.door.retire()
    with pytest.raises(ConnectionError):
        await site.dial()
    asking[1].write(POST + b"Content-Length: 2\r\n\r\nab")
    answer = await asking[0].read()
    assert answer.startswith(b"HTTP/1.1 200") and b"Connection: close\r\n" in answer
    assert not site.door.deserted
    monkeypatch.setattr("proxy.listeners.http1.QUIET_S", 0.0)
    assert await resting[0].read() == b""
    await until(lambda: site.door.deserted)
