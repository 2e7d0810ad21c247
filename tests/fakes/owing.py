# SPDX-License-Identifier: Apache-2.0
"""Clients that ask for much by HTTP/3, by raw QUIC streams or by HTTP/1.1 over TLS, and read when they are told to."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Protocol

from inferlane.wire import UNTIL_FIN, Header, Type, decode, encode
from tests.fakes.raw_quic import Exchange, RawClient, http3, quic, section

__all__ = ["DOORS", "Asked", "Client", "Upload"]

WINDOW = 64 * 1024
"""What each client takes before it stalls."""
FIRST = 12 << 20
"""Behind them our clients, who hold in memory what they are to send, have nothing more to say."""
_PATIENCE_S = 60.0


class Asked(Protocol):
    """One request whose reply nobody reads yet."""

    async def read(self, count: int) -> bytes:
        """At least so many bytes of the reply's body from its beginning, or all of it."""
        ...

    def leave(self) -> None:
        """Nobody will read it any more."""
        ...


class Upload(Protocol):
    """One request on its way."""

    @property
    def taken(self) -> int:
        """Bytes that the gateway has let its client send."""
        ...

    def leave(self) -> None:
        """Break it off."""
        ...


class Client(Protocol):
    """One connection that does not read."""

    async def ask(self, model: str, body: bytes) -> Asked:
        """Send a request and wait for nothing."""
        ...

    async def upload(self, model: str, length: int) -> Upload:
        """Announce so many bytes, and send them as they may be sent: of QUIC the first FIRST alone."""
        ...


class _OnStream:
    def __init__(self, exchange: Exchange, *, native: bool) -> None:
        self.exchange = exchange
        self._native = native

    async def read(self, count: int) -> bytes:
        exchange, client = self.exchange, self.exchange.client
        if "_write_stream_limits" in vars(client.quic):
            client.read_on()
        async with asyncio.timeout(_PATIENCE_S):
            while len(exchange.body) < count and not exchange.ended:
                assert exchange.reset is None and client.terminated is None
                await asyncio.sleep(0.05)
        return bytes(exchange.body[decode(bytes(exchange.body[:1024]))[1] if self._native else 0 :])

    @property
    def taken(self) -> int:
        return self.exchange.client.quic._streams[self.exchange.stream_id].max_stream_data_remote

    def leave(self) -> None:
        self.exchange.abandon()


class _QuicClient:
    def __init__(self, client: RawClient, *, native: bool) -> None:
        self._client = client
        self._native = native

    async def ask(self, model: str, body: bytes) -> Asked:
        if not self._native:
            return _OnStream(self._client.send(section(b"/v2/models/%b/infer" % model.encode()), body), native=False)
        return self._native_request(model, body, UNTIL_FIN)

    async def upload(self, model: str, length: int) -> Upload:
        if self._native:
            return self._native_request(model, bytes(FIRST), length)
        fields = section(b"/v2/models/%b/infer" % model.encode(), (b"content-length", b"%d" % length))
        return _OnStream(self._client.send(fields, bytes(FIRST), end=False), native=False)

    def _native_request(self, model: str, body: bytes, length: int) -> _OnStream:
        exchange = self._client.stream()
        header = Header(type=Type.REQUEST, request_id=1, total_length=length, model=model)
        exchange.send_raw(encode(header) + body, end=length == UNTIL_FIN)
        return _OnStream(exchange, native=True)


class _TlsClient:
    """Its kernel's buffer is small, so that what it does not read stays where it is."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._sock: socket.socket = connection.sock
        self._response: http.client.HTTPResponse | None = None
        self._read = bytearray()
        self.taken = 0
        self._sending: asyncio.Future[None] | None = None

    async def ask(self, model: str, body: bytes) -> Asked:
        await asyncio.to_thread(self._connection.request, "POST", f"/v2/models/{model}/infer", body)
        return self

    async def read(self, count: int) -> bytes:
        return await asyncio.to_thread(self._read_now, count)

    async def upload(self, model: str, length: int) -> Upload:
        self._connection.putrequest("POST", f"/v2/models/{model}/infer")
        self._connection.putheader("content-length", str(length))
        self._connection.endheaders()
        self._sending = asyncio.ensure_future(asyncio.to_thread(self._send_now, length))
        return self

    def leave(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _send_now(self, length: int) -> None:
        with suppress(OSError):
            while self.taken < length:
                self._connection.send(bytes(WINDOW))
                self.taken += WINDOW

    def _read_now(self, count: int) -> bytes:
        self._response = self._response or self._connection.getresponse()
        while len(self._read) < count and (data := self._response.read(WINDOW)):
            self._read += data
        return bytes(self._read)


async def _h3(stack: AsyncExitStack, address: tuple[str, int]) -> Client:
    client = await stack.enter_async_context(http3(address, window=WINDOW))
    client.stall()
    return _QuicClient(client, native=False)


async def _stream(stack: AsyncExitStack, address: tuple[str, int]) -> Client:
    client = await stack.enter_async_context(quic(address, "inferlane/1", window=WINDOW))
    client.stall()
    return _QuicClient(client, native=True)


async def _h1(stack: AsyncExitStack, address: tuple[str, int]) -> Client:
    connection = http.client.HTTPConnection(*address, timeout=_PATIENCE_S)
    connection.sock = await asyncio.to_thread(_connected, address)
    client = _TlsClient(connection)
    stack.callback(client.leave)
    return client


def _connected(address: tuple[str, int]) -> ssl.SSLSocket:
    sock = socket.socket()
    sock.settimeout(_PATIENCE_S)
    for which in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, which, WINDOW)
    sock.connect(address)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    return unchecked.wrap_socket(sock)


DOORS: dict[str, Callable[[AsyncExitStack, tuple[str, int]], Awaitable[Client]]] = {
    "h3": _h3,
    "stream": _stream,
    "h1": _h1,
}
