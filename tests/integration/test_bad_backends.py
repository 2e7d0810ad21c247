# SPDX-License-Identifier: Apache-2.0
"""Backends that are down, slow, talk nonsense or stop half-way: a mapped status, no hang, and every place comes back.

Each reply that breaks off after its head is a reset for the client, never a clean end.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from aioquic.h3.connection import ErrorCode

import inferlane
from inferlane import oip
from inferlane.errors import ConnectionFailed, Refused
from tests.fakes.authority import issue
from tests.fakes.live_gateway import CLASSES, LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.raw_quic import RawClient, http3, section
from tests.fakes.raw_server import Peer, RawServer
from tests.fakes.raw_udp import RawUdpServer

INFER = b"/v2/models/m/infer"
SOON = (b"inferlane-timeout", b"300ms")  # a deadline that a test waits for
LATER = (b"inferlane-timeout", b"1s")  # the same, where something must have happened before
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
LONG = 200_000  # a reply that is not gathered but streamed
WHOLE = OK + b"content-length: 2\r\n\r\n{}"

Answer = Callable[[Peer], Coroutine[None, None, None]]


async def stall(peer: Peer) -> None:
    await peer.head()
    await peer.end()


def says(data: bytes, *, then: Answer | None = None) -> Answer:
    """Reads the request, says this, and closes or does `then`."""

    async def answer(peer: Peer) -> None:
        await peer.head()
        peer.say(data)
        await peer.writer.drain()
        if then is None:
            peer.close()
        else:
            await then(peer)

    return answer


async def keep_open(peer: Peer) -> None:
    await peer.end()


async def keep_open_unread(peer: Peer) -> None:
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
    await asyncio.Event().wait()


async def reset(peer: Peer) -> None:
    peer.reset()


async def close(peer: Peer) -> None:
    peer.close()


def adds(data: bytes) -> Answer:
    """Says more and waits for the end."""

    async def answer(peer: Peer) -> None:
        peer.say(data)
        await peer.end()

    return answer


async def reset_at_once(peer: Peer) -> None:
    await peer.head()
    peer.reset()


async def close_at_once(peer: Peer) -> None:
    await peer.head()
    peer.close()


async def two_replies(peer: Peer) -> None:
    """The surplus reply must not answer the next request."""
    await peer.head()
    peer.say(WHOLE + WHOLE)
    await peer.end()


DOWN = (503, "backend_failed")
FAILED = (502, "backend_failed")
LATE = (504, "deadline")
BROKEN: dict[str, tuple[Answer, tuple[int, str]]] = {
    "closes at once": (close_at_once, FAILED),
    "resets at once": (reset_at_once, FAILED),
    "accepts and stalls": (stall, LATE),
    "half a head, then closes": (says(OK[:20]), FAILED),
    "half a head, then stalls": (says(OK[:20], then=keep_open), LATE),
    "a head without an end": (says(OK + b"x: " + b"y" * 100_000, then=keep_open), FAILED),
    "garbage": (says(b"\x16\x03\x01\x02\x00\x01\x00", then=keep_open), FAILED),
    "another protocol": (says(b"SSH-2.0-OpenSSH_9.2\r\n", then=keep_open), FAILED),
    "HTTP/2": (says(b"\0\0\x12\x04\0\0\0\0\0", then=keep_open), FAILED),
    "two content-lengths that differ": (says(OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}"), FAILED),
    "two content-lengths that agree": (says(OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}"), FAILED),
    "a length beside chunks": (says(OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), FAILED),
    "a negative content-length": (says(OK + b"content-length: -2\r\n\r\n{}"), FAILED),
    "a content-length with a sign": (says(OK + b"content-length: +2\r\n\r\n{}"), FAILED),
    "a content-length of 30 digits": (says(OK + b"content-length: " + b"9" * 30 + b"\r\n\r\n{}"), FAILED),
    "a small body cut off": (says(OK + b"content-length: 20\r\n\r\n{}"), FAILED),
    "a small body that stalls": (says(OK + b"content-length: 20\r\n\r\n{}", then=keep_open), LATE),
    "a status that is none": (says(b"HTTP/1.1 999 What\r\ncontent-length: 0\r\n\r\n"), FAILED),
    "another version": (says(b"HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n"), FAILED),
    "an upgrade that nobody asked for": (says(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", then=keep_open), FAILED),
    "interim replies without end": (says(b"HTTP/1.1 102 Processing\r\n\r\n" * 4000, then=keep_open), FAILED),
    "200 and closes": (says(OK + b"content-length: %d\r\n\r\n" % LONG), FAILED),
    "200 and stalls": (says(OK + b"content-length: %d\r\n\r\n" % LONG, then=keep_open), LATE),
    "200 and garbage at once": (says(OK + b"content-length: 2\r\n\r\nOK"), FAILED),
    "a folded field": (says(OK + b"x: 1\r\n y\r\ncontent-length: 2\r\n\r\n{}"), FAILED),
    "NUL in a field": (says(OK + b"x: 1\0\r\ncontent-length: 2\r\n\r\n{}"), FAILED),
    "a JSON length that lies": (
        says(OK + b"inference-header-content-length: 9\r\ncontent-length: 2\r\n\r\n{}"), FAILED
    ),
}  # fmt: skip
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n5\r\n{ello\r\n"
SIZED = OK + b"content-length: %d\r\n\r\n" % LONG
HALF = SIZED + b"{" + bytes(LONG // 2)
# What is said until the client has the reply's head, and what happens then.
BROKEN_OFF: dict[str, tuple[bytes, Answer]] = {
    "closes half-way": (HALF, close),
    "resets half-way": (HALF, reset),
    "stalls half-way": (HALF, keep_open),
    "chunks that end without an end": (CHUNKED, close),
    "chunks that stall": (CHUNKED, keep_open),
    "a bad chunk size": (CHUNKED, adds(b"xyz\r\n")),
    "a negative chunk size": (CHUNKED, adds(b"-5\r\n")),
    "a chunk size beyond 64 bits": (CHUNKED, adds(b"f" * 17 + b"\r\n")),
    "a chunk longer than it says": (CHUNKED, adds(b"2\r\nhello\r\n")),
    "a chunk extension without end": (CHUNKED, adds(b"5;" + b"x" * 100_000)),
    "trailers without end": (CHUNKED, adds(b"0\r\nx: " + b"y" * 100_000)),
}


@asynccontextmanager
async def backend(answer: Answer) -> AsyncIterator[RawServer]:
    """A server that treats every connection so."""
    server = RawServer()
    await server.start()

    async def serve() -> None:
        async with asyncio.TaskGroup() as peers:
            while True:
                with suppress(TimeoutError):  # nobody came for a while
                    peers.create_task(answer(await server.accept()))

    serving = asyncio.create_task(serve())
    try:
        yield server
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await server.close()


@asynccontextmanager
async def talking_to(answer: Answer, tmp_path: Path) -> AsyncIterator[tuple[LiveGateway, RawClient]]:
    """A gateway before such a server, and a client before that."""
    async with (
        backend(answer) as server,
        live_gateway(write_config(tmp_path, oip_pool(server.port))) as gateway,
        http3(gateway.address) as client,
    ):
        yield gateway, client


@pytest.mark.parametrize("name", BROKEN)
async def test_a_reply_that_never_was_is_a_status_of_ours(name: str, tmp_path: Path) -> None:
    answer, expected = BROKEN[name]
    async with talking_to(answer, tmp_path) as (gateway, client):
        reply = await client.ask(section(INFER, *([SOON] if expected == LATE else [])), b"{}")
        assert (reply.status, reply.document["reason"]) == expected
        assert reply.document["detail"]
        assert reply.ended
        await gateway.nothing_in_flight()


@pytest.mark.parametrize("name", BROKEN_OFF)
async def test_a_reply_that_breaks_off_is_a_reset(name: str, tmp_path: Path) -> None:
    first, then = BROKEN_OFF[name]
    head_seen = asyncio.Event()

    async def break_off(peer: Peer) -> None:
        await head_seen.wait()
        await then(peer)

    async with talking_to(says(first, then=break_off), tmp_path) as (gateway, client):
        # What stalls is ended by the deadline, and by nothing else.
        reply = client.send(section(INFER, *([LATER] if then is keep_open else [])), b"{}")
        await client.until(lambda: reply.head)
        head_seen.set()
        await reply.over()
        assert reply.status == 200
        assert (reply.reset, reply.ended) == (ErrorCode.H3_INTERNAL_ERROR, False)
        await gateway.nothing_in_flight()


@pytest.mark.parametrize("name", ["closes at once", "accepts and stalls", "garbage"])
@pytest.mark.parametrize("scheme", ["https", "quic", "quic+datagram", "udp"])
async def test_every_transport_tells_the_same(name: str, scheme: str, tmp_path: Path) -> None:
    answer, (status, reason) = BROKEN[name]
    async with talking_to(answer, tmp_path) as (gateway, _):
        async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
            with pytest.raises(Refused) as caught:
                x = np.zeros((1, 4), np.float32)
                await client.infer("m", {"x": x}, timeout=0.5 if (status, reason) == LATE else 30)
        assert (caught.value.status, caught.value.reason.label) == (status, reason)
        await gateway.nothing_in_flight()


@pytest.mark.parametrize("scheme", ["https", "quic"])
async def test_the_client_library_never_takes_half_a_reply_for_a_whole_one(scheme: str, tmp_path: Path) -> None:
    async with talking_to(says(HALF), tmp_path) as (gateway, _):
        async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
            with pytest.raises(ConnectionFailed, match="broke the reply off"):
                await client.infer("m", {"x": np.zeros((1, 4), np.float32)})
        await gateway.nothing_in_flight()


async def test_a_backend_that_is_down(tmp_path: Path) -> None:
    async with live_gateway(write_config(tmp_path, oip_pool(closed_port()))) as gateway:
        async with http3(gateway.address) as client:
            reply = await client.ask(section(INFER), b"{}")
            assert (reply.status, reply.document["reason"]) == DOWN
            assert (await client.ask(section(b"/v2/models/m", method=b"GET"))).status == 503
        await gateway.nothing_in_flight()


async def test_a_backend_that_comes_back(tmp_path: Path) -> None:
    port = closed_port()
    async with live_gateway(write_config(tmp_path, oip_pool(port))) as gateway, http3(gateway.address) as client:
        assert (await client.ask(section(INFER), b"{}")).status == 503
        server = RawServer()
        await server.start(port=port)
        asking = client.send(section(INFER), b"{}")
        peer = await server.accept()
        await peer.request()
        peer.say(WHOLE)
        assert (await asking.over()).status == 200
        await server.close()


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_a_status_of_the_backends_own_is_handed_on(status: int, tmp_path: Path) -> None:
    said = (
        b"HTTP/1.1 %d Whatever\r\ncontent-type: text/plain\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nno: " % status
    )
    async with talking_to(says(said), tmp_path) as (gateway, client):
        reply = await client.ask(section(INFER), b"{}")
        assert (reply.status, bytes(reply.body), reply.head[b"retry-after"]) == (status, b"no: ", b"7")
        await gateway.nothing_in_flight()


async def test_a_reply_that_was_not_asked_for_answers_nobody(tmp_path: Path) -> None:
    """Two replies to one request: the second one's connection is not used again."""
    async with talking_to(two_replies, tmp_path) as (gateway, client):
        for _ in range(3):
            assert (await client.ask(section(INFER), b"{}")).status == 200
        await gateway.nothing_in_flight()
        assert await gateway.value("inferlane_requests_total", reason="ok") == 3


async def test_a_slow_backend_is_late_for_one_class_and_in_time_for_another(tmp_path: Path) -> None:
    """Its answer comes when the realtime request has been refused; the other one still waits for its own."""
    server = RawServer()
    await server.start()
    classes = CLASSES.replace("EF, deadline: 60s", "EF, deadline: 100ms")
    conf = write_config(tmp_path, oip_pool(server.port), classes=classes)
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        patient = client.send(section(INFER), b"{}")
        peer = await server.accept()
        await peer.request()
        hasty = await client.ask(section(INFER, (b"inferlane-class", b"realtime")), b"{}")
        assert (hasty.status, hasty.document["reason"]) == LATE
        assert hasty.head[b"inferlane-class"] == b"realtime"
        peer.say(WHOLE)
        assert (await patient.over()).status == 200
        await gateway.nothing_in_flight()
    await server.close()


async def test_a_backend_that_does_not_read(tmp_path: Path) -> None:
    """The upload stops in the socket's buffers, and the deadline ends it."""
    size = 16 << 20
    async with talking_to(keep_open_unread, tmp_path) as (gateway, client):
        asking = client.send(section(INFER, LATER, (b"content-length", b"%d" % size)), bytes(size))
        await asking.over()
        assert (asking.status, asking.document["reason"]) == LATE
        await gateway.nothing_in_flight()
        assert (await client.ask(section(b"/v2/health/live", method=b"GET"))).status == 200


async def test_a_backend_whose_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    trusted, other = (issue(make_folder(tmp_path / name)) for name in ("trusted", "other"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.cert, other.key)
    secure, plain = RawServer(), RawServer()
    await secure.start(context)
    await plain.start()
    for server in (secure, plain):
        endpoint = f"{{oip: 'https://127.0.0.1:{server.port}', tls: {{ca: {trusted.ca}}}}}"
        pools = f"[{{name: far, model: m, endpoints: [{endpoint}]}}]"
        async with live_gateway(write_config(tmp_path, pools)) as gateway, http3(gateway.address) as client:
            reply = client.send(section(INFER), b"{}")
            if server is plain:
                (await server.accept()).say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reply.over()
            assert (reply.status, reply.document["reason"]) == DOWN
            await gateway.nothing_in_flight()
        await server.close()


async def test_a_datagram_backend_that_is_down(tmp_path: Path) -> None:
    async with asking_datagrams(closed_port(socket.SOCK_DGRAM), tmp_path) as (gateway, client):
        reply = await client.ask(section(INFER), b"{}")
        assert (reply.status, reply.document["reason"]) == DOWN
        await gateway.nothing_in_flight()


@pytest.mark.parametrize("said", [None, b"garbage", b"\x0a" * 1200, b"", bytes(2000)])
async def test_a_datagram_backend_that_says_nothing_of_use(said: bytes | None, tmp_path: Path) -> None:
    server = RawUdpServer()
    await server.start()
    async with asking_datagrams(server.port, tmp_path) as (gateway, client):
        asking = client.send(section(INFER, SOON), b"{}")
        await server.receive()
        if said is not None:
            server.say(said)
        await asking.over()
        assert (asking.status, asking.document["reason"]) == LATE
        await gateway.nothing_in_flight()
    server.close()


async def test_a_datagram_backend_whose_garbage_comes_before_its_answer(tmp_path: Path) -> None:
    server = RawUdpServer()
    await server.start()
    body, json_length = oip.encode_reply("m", "1", {"y": np.zeros(2, np.float32)}, binary=True)
    async with asking_datagrams(server.port, tmp_path) as (gateway, client):
        asking = client.send(section(INFER), b"{}")
        header, sent = await server.greet()
        assert sent == b"{}"
        server.say(b"garbage")
        server.reply(replace(header, request_id=header.request_id ^ 1), b"of another request")
        server.reply(header, body, json_length=json_length)
        await asking.over()
        assert (asking.status, bytes(asking.body)) == (200, body)
        await gateway.nothing_in_flight()
    server.close()


@asynccontextmanager
async def asking_datagrams(port: int, tmp_path: Path) -> AsyncIterator[tuple[LiveGateway, RawClient]]:
    pools = f'[{{name: far, model: "*", endpoints: [{{datagram: "127.0.0.1:{port}"}}]}}]'
    async with live_gateway(write_config(tmp_path, pools)) as gateway, http3(gateway.address) as client:
        yield gateway, client


def closed_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """One that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path
