# SPDX-License-Identifier: Apache-2.0
"""What the client towards HTTP/1.1 backends costs: CPU per request, beside other ways to do its job.

    python -m benchmarks.backend_client

A backend in a process of its own gives 200 bytes for each POST of 1,000; this process asks it, in turns and in short
rounds, and counts its own user and system time. The fastest round of each way counts: the machine has other work.

* backend: `OipBackend.infer`, all that the gateway does between the walk and the socket;
* connection: one exchange on a kept connection, with its deadline; the head is known after the first;
* parsed: the same bytes, but every head goes through httptools;
* raw socket: the same without a transport: `send` at once, `add_reader`, `recv`; it has no deadline and no bounds;
* h11, aiohttp: libraries.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection as Pipe
from typing import cast

import aiohttp
import h11
import uvloop

from backends.body import Body
from backends.messages import Request
from backends.remote.http1 import Heads, ReplyReader
from backends.remote.keepalive import Connections
from backends.remote.oip import OipBackend
from backends.remote.origin import parse_origin
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

REALTIME = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=60, queue_s=60)
BODY = b'{"a":"' + b"x" * 992 + b'"}'
HEAD = (
    b"POST /v2/models/m/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ninferlane-class: realtime\r\ninferlane-timeout: 59999ms"
    b"\r\nx-request-id: r-1\r\ncontent-length: 1000\r\ncontent-type: application/json\r\naccept: */*\r\n\r\n"
)
REPLY = (
    b"HTTP/1.1 200 OK\r\nserver: nginx\r\ndate: Sun, 22 Nov 2026 07:00:00 GMT\r\ncontent-type: application/json\r\n"
    b'content-length: 200\r\nconnection: keep-alive\r\n\r\n{"a":"' + b"x" * 192 + b'"}'
)
FIELDS = ((b"content-type", b"application/json"), (b"accept", b"*/*"), (b"user-agent", b"bench/1.0"))
ROUNDS = 8
REQUESTS = {1: 800, 64: 3200}

Ask = Callable[[], Awaitable[object]]


class _Backend(asyncio.Protocol):
    """Answers every 1,000 bytes of body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._waiting = b""

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting + data
        while (end := waiting.find(b"\r\n\r\n")) >= 0 and len(waiting) >= end + 4 + len(BODY):
            waiting = waiting[end + 4 + len(BODY) :]
            self._transport.write(REPLY)
        self._waiting = waiting


def _serve(pipe: Pipe) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Backend, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


class _NeverKnown(Heads):
    def learn(self, data: bytes, reader: ReplyReader) -> None:
        pass


class _RawSocket:
    """The least that asks and reads. read: what a reply's bytes are given to."""

    def __init__(self, sock: socket.socket, read: Callable[[bytes], object]) -> None:
        self._sock = sock
        self._read = read
        self._waiter: asyncio.Future[object] | None = None
        asyncio.get_running_loop().add_reader(sock, self._readable)

    async def ask(self) -> object:
        self._waiter = asyncio.get_running_loop().create_future()
        self._sock.send(HEAD + BODY)
        return await self._waiter

    def _readable(self) -> None:
        assert self._waiter is not None
        self._waiter.set_result(self._read(self._sock.recv(65536)))


def _with_backend(port: int) -> Ask:
    backend = OipBackend(f"http://127.0.0.1:{port}", slots=64)

    async def ask() -> object:
        now = time.monotonic()
        request = Request(
            request_id="r-1",
            model="m",
            traffic_class=REALTIME,
            deadline=now + 60,
            body=Body.of(BODY),
            timeline=Timeline(received=now),
            fields=FIELDS,
        )
        return await backend.infer(request)

    return ask


def _with_connections(port: int, heads: Heads) -> Ask:
    connections = Connections(parse_origin(f"http://127.0.0.1:{port}"), max_idle=64)
    connections.heads = heads

    async def ask() -> object:
        deadline = time.monotonic() + 60
        connection = connections.take("realtime") or await connections.open("realtime", deadline=deadline)
        return await connection.ask(HEAD + BODY, deadline=deadline)

    return ask


def _with_raw_sockets(port: int, new_read: Callable[[], Callable[[bytes], object]]) -> Ask:
    idle: list[_RawSocket] = []

    async def ask() -> object:
        if not idle:
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            idle.append(_RawSocket(sock, new_read()))
        connection = idle.pop()
        answer = await connection.ask()
        idle.append(connection)
        return answer

    return ask


def _read_by_httptools() -> Callable[[bytes], object]:
    reader = ReplyReader(_NeverKnown())

    def read(data: bytes) -> object:
        reader.begin()
        reader.feed(data)
        assert reader.complete
        return reader.take()

    return read


def _read_by_h11() -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        connection = h11.Connection(h11.CLIENT)  # its heads are checked as they are written: part of its price
        connection.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(data)
        body = b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
        return body

    return read


def _with_aiohttp(session: aiohttp.ClientSession, port: int) -> Ask:
    async def ask() -> object:
        async with session.post(f"http://127.0.0.1:{port}/v2/models/m/infer", data=BODY) as answer:
            return await answer.read()

    return ask


async def _spend(ask: Ask, in_flight: int, requests: int) -> float:
    """CPU microseconds of this thread per request."""

    async def one_after_the_other() -> None:
        for _ in range(requests // in_flight):
            await ask()

    before = time.thread_time()
    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    return (time.thread_time() - before) / requests * 1e6


async def _compare(port: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session:
        ways = {
            "backend": _with_backend(port),
            "connection": _with_connections(port, Heads()),
            "connection, parsed": _with_connections(port, _NeverKnown()),
            "raw socket, httptools": _with_raw_sockets(port, _read_by_httptools),
            "raw socket, h11": _with_raw_sockets(port, _read_by_h11),
            "aiohttp": _with_aiohttp(session, port),
        }
        print(f"{'CPU us per request':24}" + "".join(f"{each:>8}" for each in REQUESTS))
        best = {(name, each): await _spend(ask, each, each) for each in REQUESTS for name, ask in ways.items()}
        for each, requests in REQUESTS.items():
            for _ in range(ROUNDS):
                for name, ask in ways.items():
                    best[name, each] = min(best[name, each], await _spend(ask, each, requests))
        for name in ways:
            print(f"{name:24}" + "".join(f"{best[name, each]:8.1f}" for each in REQUESTS))


def main() -> None:
    """Print the table."""
    ours, theirs = multiprocessing.Pipe()
    backend = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    backend.start()
    try:
        uvloop.run(_compare(ours.recv()))
    finally:
        backend.terminate()


if __name__ == "__main__":
    main()
