# SPDX-License-Identifier: Apache-2.0
"""A gateway of a few lines on aioquic's own server: HTTP/3, streams, DATAGRAM, and answers that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    DatagramFrameReceived,
    ProtocolNegotiated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)

from inferlane.wire import Header, Type, decode, encode


@dataclass
class Asked:
    """One request as it came, and the connection to answer on."""

    connection: FakeConnection
    stream_id: int
    fields: dict[bytes, bytes] = field(default_factory=dict)
    header: Header | None = None
    body: bytes = b""

    def respond(self, status: int, fields: dict[bytes, bytes], body: bytes) -> None:
        """An HTTP/3 reply."""
        head = [(b":status", b"%d" % status), *fields.items()]
        self.connection.http.send_headers(self.stream_id, head)
        self.connection.http.send_data(self.stream_id, body, end_stream=True)
        self.connection.transmit()

    def send(self, message: bytes, *, end: bool = True) -> None:
        """Bytes on the request's stream."""
        self.connection.quic.send_stream_data(self.stream_id, message, end)
        self.connection.transmit()

    def datagram(self, **fields: object) -> None:
        """One DATAGRAM under the request's id."""
        body = fields.pop("body", b"")
        header = Header(request_id=self.header.request_id, total_length=len(body), **fields)
        self.connection.quic.send_datagram_frame(encode(header) + body)
        self.connection.transmit()

    def reset(self, code: int) -> None:
        self.connection.quic.reset_stream(self.stream_id, code)
        self.connection.transmit()


class FakeConnection(QuicConnectionProtocol):
    """One client's connection."""

    def __init__(self, quic, stream_handler=None, *, gateway: FakeGateway) -> None:
        super().__init__(quic, stream_handler)
        self.quic = quic
        self.http: H3Connection | None = None
        self.gateway = gateway
        self.mute = False
        self.streams: dict[int, Asked] = {}
        gateway.connections.append(self)

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated) and event.alpn_protocol == "h3":
            self.http = H3Connection(self._quic)
        if isinstance(event, StopSendingReceived | StreamReset):
            self.gateway.given_up.put_nowait((event.stream_id, event.error_code))
        if self.http is not None:
            for each in self.http.handle_event(event):
                self._on_http(each)
        elif isinstance(event, StreamDataReceived):
            asked = self.streams.setdefault(event.stream_id, Asked(self, event.stream_id))
            asked.body += event.data
            if event.end_stream:
                asked.header, start = decode(asked.body)
                asked.body = asked.body[start:]
                self.gateway.answer(asked)
        elif isinstance(event, DatagramFrameReceived):
            header, start = decode(event.data)
            if header.type is Type.CANCEL:
                self.gateway.given_up.put_nowait((header.request_id, 0))
            else:
                self.gateway.answer(Asked(self, -1, header=header, body=event.data[start:]))

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.mute:
            super().datagram_received(data, addr)

    def transmit(self) -> None:
        if not self.mute:
            super().transmit()

    def _on_http(self, event: object) -> None:
        if isinstance(event, HeadersReceived):
            self.streams[event.stream_id] = Asked(self, event.stream_id, dict(event.headers))
        elif isinstance(event, DataReceived):
            asked = self.streams[event.stream_id]
            asked.body += event.data
            if event.stream_ended:
                self.gateway.answer(asked)


class FakeGateway:
    """Everything that reached it, and what to do about it."""

    def __init__(self, answer: Callable[[Asked], None]) -> None:
        self.answer = answer
        self.connections: list[FakeConnection] = []
        self.given_up: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        """Stream (or request id) and code of what clients cancelled."""
        self.port = 0

    def forget_connections(self) -> None:
        """Without a word, as a restart does."""
        for each in self.connections:
            each.mute = True
        self.connections.clear()

    def close_connections(self, code: int, why: str) -> None:
        for each in self.connections:
            each.close(error_code=code, reason_phrase=why)
        self.connections.clear()


@asynccontextmanager
async def quic_gateway(
    answer: Callable[[Asked], None], pair: tuple[Path, Path], *, datagrams: bool = True, alpn: tuple[str, ...] = ()
) -> AsyncIterator[FakeGateway]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    gateway = FakeGateway(answer)
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=list(alpn) or ["h3", "inferlane/1"],
        max_datagram_frame_size=65535 if datagrams else None,
    )
    configuration.load_cert_chain(*pair)
    server = await serve(
        "127.0.0.1",
        0,
        configuration=configuration,
        create_protocol=lambda *args, **kwargs: FakeConnection(*args, gateway=gateway, **kwargs),
    )
    gateway.port = server._transport.get_extra_info("sockname")[1]
    try:
        yield gateway
    finally:
        gateway.close_connections(0, "")
        server.close()
