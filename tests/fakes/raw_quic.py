# SPDX-License-Identifier: Apache-2.0
"""A QUIC client over a real socket that sends whatever fields and bytes a test writes, and keeps what comes back.

aioquic carries the packets and reads the replies; field sections and frames go out as given, past its own checks.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pylsqpack
from aioquic._buffer import Buffer
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection, encode_frame
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 30.0
WINDOW = 1 << 20
_CONTROL = b"\x00"  # the stream type of RFC 9114 section 6.2.1

Field = tuple[bytes, bytes]


def section(path: bytes, *fields: Field, method: bytes = b"POST") -> list[Field]:
    """A request's fields as a well-behaved client sends them, and `fields` behind them."""
    return [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path), *fields]


@dataclass(eq=False)
class Exchange:
    """One request stream."""

    client: RawClient
    stream_id: int
    head: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    """The reply came to a clean end."""
    reset: int | None = None
    """The code with which the server broke its reply off."""
    stopped: int | None = None
    """The code with which the server asked for no more of the request."""

    @property
    def status(self) -> int | None:
        return int(self.head[b":status"]) if self.head else None

    @property
    def document(self) -> dict[str, Any]:
        """The reply's JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document

    async def over(self) -> Exchange:
        """Wait until nothing more can come: an end, a reset, or the connection's end."""
        await self.client.until(lambda: self.ended or self.reset is not None or self.client.terminated is not None)
        return self

    def send(self, data: bytes, *, end: bool = False) -> None:
        """More of the request's body, as one DATA frame."""
        self.send_raw(encode_frame(FrameType.DATA, data) if data else b"", end=end)

    def send_fields(self, fields: Iterable[Field], *, end: bool = False) -> None:
        """One more HEADERS frame: trailers."""
        self.send_raw(self.client.headers(self.stream_id, fields), end=end)

    def send_raw(self, data: bytes, *, end: bool = False) -> None:
        """Bytes on the stream, whatever they mean."""
        self.client.quic.send_stream_data(self.stream_id, data, end)
        self.client.transmit()

    def cancel(self, error_code: int = 0x10C) -> None:
        """RESET_STREAM: the rest of the request will not come (H3_REQUEST_CANCELLED)."""
        self.client.quic.reset_stream(self.stream_id, error_code)
        self.client.transmit()

    def stop(self, error_code: int = 0x10C) -> None:
        """STOP_SENDING: the reply is not wanted."""
        self.client.quic.stop_stream(self.stream_id, error_code)
        self.client.transmit()

    def abandon(self) -> None:
        """Both, as RFC 9114 section 4.1.1 has it."""
        self.cancel()
        self.stop()


class RawClient(QuicConnectionProtocol):
    """One connection, speaking HTTP/3 or, under any other ALPN, nothing but streams."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self.quic = quic
        self.terminated: ConnectionTerminated | None = None
        alpn = quic.configuration.alpn_protocols or []
        self._http = H3Connection(quic) if alpn == ["h3"] else None
        self._encoder = pylsqpack.Encoder()
        self._exchanges: dict[int, Exchange] = {}
        self._uni: dict[int, bytearray] = {}
        self._changed = asyncio.Event()

    def send(self, fields: Iterable[Field], body: bytes | None = None, *, end: bool = True) -> Exchange:
        """A request: its HEADERS frame and, where there is a body, one DATA frame."""
        exchange = self.open(fields, body, end=end)
        self.transmit()
        return exchange

    def open(self, fields: Iterable[Field], body: bytes | None = None, *, end: bool = True) -> Exchange:
        """A request that goes out with the next transmission, in turns with others."""
        exchange = self.stream()
        frames = self.headers(exchange.stream_id, fields)
        if body is not None:
            frames += encode_frame(FrameType.DATA, body)
        self.quic.send_stream_data(exchange.stream_id, frames, end)
        return exchange

    def headers(self, stream_id: int, fields: Iterable[Field]) -> bytes:
        """A HEADERS frame."""
        _, encoded = self._encoder.encode(stream_id, list(fields))
        return encode_frame(FrameType.HEADERS, encoded)

    def stream(self) -> Exchange:
        """A request stream on which nothing was sent yet."""
        stream_id = self.quic.get_next_available_stream_id()
        # Opened, so that the next one has another number.
        self.quic.send_stream_data(stream_id, b"")
        self._exchanges[stream_id] = Exchange(self, stream_id)
        return self._exchanges[stream_id]

    async def ask(self, fields: Iterable[Field], body: bytes | None = None) -> Exchange:
        """A request and all of its answer."""
        return await self.send(fields, body).over()

    def stall(self) -> None:
        """Open no window any more."""
        self.quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
        self.quic._write_connection_limits = lambda **_: None  # type: ignore[method-assign]

    def read_on(self) -> None:
        """Open them again."""
        del self.quic._write_stream_limits, self.quic._write_connection_limits
        self.transmit()

    def forget(self) -> None:
        """Nobody is left to wait for the end of aioquic's closing period, three timeouts long."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def goaway(self) -> int | None:
        """The stream id of the newest GOAWAY (RFC 9114 section 7.2.6)."""
        found = None
        for said in self._uni.values():
            if not said.startswith(_CONTROL):
                continue
            buffer = Buffer(data=bytes(said[1:]))
            while not buffer.eof():
                kind, payload = buffer.pull_uint_var(), Buffer(data=buffer.pull_bytes(buffer.pull_uint_var()))
                found = payload.pull_uint_var() if kind == FrameType.GOAWAY else found
        return found

    async def until(self, happened: Any) -> None:
        """Wait until `happened()`, looked at again after every event."""
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                self._changed.clear()
                await self._changed.wait()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated = event
        elif isinstance(event, StreamReset | StopSendingReceived):
            self._broken_off(event)
        elif isinstance(event, StreamDataReceived):
            self._received(event)
        self._changed.set()

    def _broken_off(self, event: StreamReset | StopSendingReceived) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None:
            return  # a unidirectional stream
        if isinstance(event, StreamReset):
            exchange.reset = event.error_code
        else:
            exchange.stopped = event.error_code

    def _received(self, event: StreamDataReceived) -> None:
        if self._http is None:
            self._exchanges[event.stream_id].body += event.data
            self._exchanges[event.stream_id].ended |= event.end_stream
            return
        if event.stream_id % 4 == 3:
            self._uni.setdefault(event.stream_id, bytearray()).extend(event.data)
        for each in self._http.handle_event(event):
            if isinstance(each, HeadersReceived | DataReceived):
                self._answered(self._exchanges[each.stream_id], each)

    def _answered(self, exchange: Exchange, event: HeadersReceived | DataReceived) -> None:
        if isinstance(event, HeadersReceived):
            exchange.head = dict(event.headers)
        else:
            exchange.body += event.data
        exchange.ended |= event.stream_ended


def endless_headers(length: int = 1 << 40) -> bytes:
    """The beginning of a HEADERS frame that promises so many bytes."""
    return encode_uint_var(FrameType.HEADERS) + encode_uint_var(length)


def http3(address: tuple[str, int], *, window: int = WINDOW) -> AbstractAsyncContextManager[RawClient]:
    """An HTTP/3 connection to a gateway whose certificate nobody checks."""
    return quic(address, "h3", window=window)


@asynccontextmanager
async def quic(address: tuple[str, int], alpn: str, *, window: int = WINDOW) -> AsyncIterator[RawClient]:
    """The same under another ALPN. window: bytes that the gateway may send at first, on each stream and in all."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=[alpn], server_name="localhost", max_data=window, max_stream_data=window
    )
    configuration.verify_mode = ssl.CERT_NONE
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(
        lambda: RawClient(QuicConnection(configuration=configuration)), remote_addr=address
    )
    try:
        client.connect(transport.get_extra_info("peername"))  # over IPv6 it has four parts
        async with asyncio.timeout(PATIENCE_S):
            await client.wait_connected()
        yield client
    finally:
        client.close()
        client.forget()
        transport.close()
