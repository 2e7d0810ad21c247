# SPDX-License-Identifier: Apache-2.0
"""`quic://`: one inference on each bidirectional QUIC stream under ALPN inferlane/1, ended by FIN."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived, StreamReset

from inferlane import wire
from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.messages import EncodedReply, EncodedRequest
from inferlane.transports.link import QuicLink
from inferlane.transports.native import read_reply, request_header
from inferlane.transports.peer import Answer, settle
from inferlane.transports.sockets import Address

__all__ = ["CANCELLED", "Stream"]

CANCELLED = 0x2  # docs/wire.md, "QUIC streams"


@dataclass(slots=True)
class _Exchange:
    """A reply while it arrives."""

    answer: Answer
    asked_at: float
    room: int
    """Bytes that may still come."""
    pieces: list[bytes] = field(default_factory=list)


class Stream:
    """One connection for raw streams; any number of requests at once."""

    def __init__(self, address: Address, configuration: QuicConfiguration, *, dscp: int, max_reply: int) -> None:
        self._link = QuicLink(address, configuration, dscp=dscp, on_event=self._on_event)
        self._max_reply = max_reply
        self._exchanges: dict[int, _Exchange] = {}

    def __repr__(self) -> str:
        return f"<Stream {self._link!r}>"

    async def connect(self) -> None:
        """Shake hands. Raises ConnectionFailed."""
        await self._link.connect()

    @property
    def alive(self) -> bool:
        """Whether a new request has a chance here."""
        return self._link.peer.alive

    async def exchange(self, request: EncodedRequest) -> EncodedReply:
        """One request, one reply. Raises Refused or ConnectionFailed; cancelled, it tells the gateway."""
        now = monotonic()
        head = wire.encode(request_header(request, now, total_length=wire.UNTIL_FIN))
        stream_id = self._link.quic.get_next_available_stream_id()
        answer = self._link.peer.expect(stream_id)
        self._exchanges[stream_id] = _Exchange(answer, now, self._max_reply + wire.MAX_HEADER)
        self._link.quic.send_stream_data(stream_id, head + request.body, end_stream=True)
        self._link.flush_soon()
        try:
            return await self._link.peer.answer(stream_id, answer, self._abandon)
        finally:
            self._exchanges.pop(stream_id, None)

    def close(self) -> None:
        """End the connection; what is in flight fails."""
        self._link.close(0, "the client was closed")

    def _abandon(self, stream_id: int) -> None:
        self._link.abandon(stream_id, CANCELLED)

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            exchange = self._exchanges.get(event.stream_id)
            if exchange is not None:
                self._take(exchange, event)
        elif isinstance(event, StreamReset):
            exchange = self._exchanges.pop(event.stream_id, None)
            if exchange is not None:
                settle(exchange.answer, ConnectionFailed(f"the gateway broke the reply off (0x{event.error_code:x})"))

    def _take(self, exchange: _Exchange, event: StreamDataReceived) -> None:
        exchange.pieces.append(event.data)
        exchange.room -= len(event.data)
        if exchange.room < 0:
            del self._exchanges[event.stream_id]
            self._abandon(event.stream_id)
            settle(exchange.answer, Refused(Reason.TOO_LARGE, f"the reply is longer than {self._max_reply} bytes"))
        elif event.end_stream:
            del self._exchanges[event.stream_id]
            settle(exchange.answer, _read(b"".join(exchange.pieces), monotonic() - exchange.asked_at))


def _read(message: bytes, waited_s: float) -> EncodedReply | Exception:
    try:
        header, start = wire.decode(message)
        body = message[start:]
        if header.total_length not in (wire.UNTIL_FIN, len(body)):
            raise wire.WireError("total_length", f"{header.total_length}, and {len(body)} bytes came")
        return read_reply(header, body, waited_s=waited_s)
    except wire.WireError as error:
        return ConnectionFailed(f"what the peer sent is no inference message: {error}")
    except Refused as refusal:
        return refusal
