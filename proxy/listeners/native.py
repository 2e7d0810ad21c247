# SPDX-License-Identifier: Apache-2.0
"""One connection under ALPN `inferlane/1`: a request a bidirectional stream, or in DATAGRAM frames (docs/wire.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Reason, Refused
from inferlane.wire import UNTIL_FIN, Header, Type, WireError, decode, encode, header_length
from proxy.arrival import Answered, Walk
from proxy.listeners.datagrams import DatagramExchanges
from proxy.listeners.exchanges import Exchanges
from proxy.listeners.marks import slices
from proxy.listeners.quic import WRITE_AHEAD, Peer
from proxy.protocols.answers import problem
from proxy.protocols.holdings import Holdings
from proxy.protocols.native import error_header, inference, reply_header
from proxy.quic.connection import (
    DatagramFrameReceived,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from qos.timeline import Timeline

__all__ = ["NativeSession"]

# Application error codes of inferlane/1 (docs/wire.md).
MALFORMED, CANCELLED, BROKEN_OFF, NOT_ACCEPTED, MOVED = 0x1, 0x2, 0x3, 0x4, 0x5


class NativeSession:
    """Raw streams and DATAGRAM of one QUIC connection."""

    goodbye = MOVED

    def __init__(  # noqa: PLR0913  one line each at its single caller
        self,
        peer: Peer,
        walk: Walk,
        *,
        listener: str,
        max_body: int,
        clock: Callable[[], float],
        counts: Counter[str],
        streams: bool,
        datagrams: bool,
        holdings: Holdings | None = None,
    ) -> None:
        self._peer = peer
        self._listener = listener
        self._max_body = max_body
        self._clock = clock
        self._counts = counts
        self._streams = streams
        self._exchanges = Exchanges(walk)
        self._heads: dict[int, bytes] = {}
        self._bodies: dict[int, Body] = {}
        self._datagrams = None
        if datagrams:
            self._datagrams = DatagramExchanges(
                walk,
                self._send_datagram,
                transport="datagram",
                listener=listener,
                clock=clock,
                counts=counts,
                cookies=None,
                max_datagram=max(peer.quic.datagram_capacity, 256),
                connection=peer,
                holdings=holdings,
            )
        self._refused: set[int] = set()

    def __repr__(self) -> str:
        return f"<NativeSession {len(self._exchanges)} in flight, {self._datagrams!r}>"

    @property
    def idle(self) -> bool:
        return not self._exchanges and (self._datagrams is None or self._datagrams.idle)

    def handle(self, event: QuicEvent) -> None:
        match event:
            case StreamDataReceived():
                self._stream_data(event.stream_id, event.data, ended=event.end_stream)
            case DatagramFrameReceived() if self._datagrams is not None:
                quic = self._peer.quic
                self._datagrams.receive(
                    event.data,
                    self._peer,
                    client=self._peer.address[0],
                    dscp=self._peer.dscp,
                    rtt_s=quic.round_trip_s,
                )
            case StopSendingReceived():
                self._gone(event.stream_id)
            case StreamReset() if self._peer.quic.replied(event.stream_id):  # it answers our STOP_SENDING
                self._refused.discard(event.stream_id)
            case StreamReset():
                self._gone(event.stream_id)

    def drain(self) -> None:
        """There is no GOAWAY here: requests that come now are refused with `draining`, which says the same."""

    def retire(self) -> None:
        """The same: those that come are answered, first as always, then with `draining`."""

    def closed(self) -> None:
        for body in self._bodies.values():
            body.fail(Refused(Reason.CANCELLED, "the client's connection is gone"))
        self._bodies.clear()
        self._heads.clear()
        self._exchanges.cancel_all()
        datagrams, self._datagrams = self._datagrams, None  # each knows the other
        if datagrams is not None:
            datagrams.cancel_all()

    def _send_datagram(self, datagram: bytes, _: Hashable, _class_name: str | None, _dscp: int) -> None:
        self._peer.quic.send_datagram_frame(datagram)
        self._peer.touch()

    def _stream_data(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        """After FIN or a reset aioquic reports a stream no more, so what nobody knows here is new."""
        known = self._bodies.get(stream_id)
        if known is not None:
            self._feed(stream_id, known, data, ended=ended)
        elif stream_id in self._refused:
            self._peer.consume(stream_id, len(data))
            if ended:
                self._refused.discard(stream_id)
        elif stream_id % 4 != 0 or not self._streams:
            self._refuse(stream_id, data, NOT_ACCEPTED, ended=ended)
        else:
            self._head(stream_id, self._heads.pop(stream_id, b"") + data, ended=ended)

    def _refuse(self, stream_id: int, data: bytes, error_code: int, *, ended: bool) -> None:
        """No request: reset what goes back, drop what still comes."""
        self._peer.consume(stream_id, len(data))
        if not ended:
            self._refused.add(stream_id)
        self._reject(stream_id, error_code)

    def _head(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        try:
            length = header_length(data)
            if (length is None or length > len(data)) and not ended:
                self._heads[stream_id] = data  # bounded: a header has at most wire.MAX_HEADER bytes
                return
            header, length = decode(data)
            if header.type is not Type.REQUEST or header.count != 1:
                raise WireError("type", "a stream carries one whole request")
        except WireError as error:
            self._counts[f"malformed_{error.rule}"] += 1
            self._refuse(stream_id, data, MALFORMED, ended=ended)
            return
        self._peer.consume(stream_id, length)
        self._begin(stream_id, header)
        self._feed(stream_id, self._bodies[stream_id], data[length:], ended=ended)

    def _begin(self, stream_id: int, header: Header) -> None:
        declared = None if header.total_length == UNTIL_FIN else header.total_length
        consumed = partial(self._peer.consume, stream_id)
        body = Body(limit=self._max_body, declared=declared, consumed=consumed)
        self._bodies[stream_id] = body
        arrival = inference(
            header,
            body,
            transport="stream",
            listener=self._listener,
            client=self._peer.address[0],
            dscp=self._peer.dscp,
            timeline=Timeline(self._clock(), rtt_s=self._peer.quic.round_trip_s),
        )
        responder = _StreamResponder(self._peer, stream_id, header.request_id)
        if declared is not None and declared > self._max_body:
            arrival.refusal = Refused(Reason.TOO_LARGE, f"{declared} bytes; this listener takes {self._max_body}")
        self._exchanges.start(stream_id, arrival, responder, ended=partial(self._ended, stream_id, body))

    def _feed(self, stream_id: int, body: Body, data: bytes, *, ended: bool) -> None:
        received, declared = body.received + len(data), body.declared
        if declared is not None and (received > declared or (ended and received < declared)):
            body.fail(Refused(Reason.BAD_REQUEST, f"the header says {declared} bytes, {received} came"))
        body.feed(data, ended=ended)
        if ended:
            self._bodies.pop(stream_id, None)

    def _ended(self, stream_id: int, body: Body) -> None:
        """The walk is over: what it left unread of the body is dropped, and a client still sending is asked to stop."""
        body.fail(Refused(Reason.CANCELLED, "the request is over"))
        if self._bodies.pop(stream_id, None) is not None:
            self._refused.add(stream_id)
            self._peer.quic.stop_receiving(stream_id, CANCELLED)
        self._peer.touch()

    def _gone(self, stream_id: int) -> None:
        unread = self._bodies.pop(stream_id, None)
        if unread is not None:
            unread.fail(Refused(Reason.CANCELLED, "the client reset its stream"))
        self._heads.pop(stream_id, None)
        self._refused.discard(stream_id)
        self._exchanges.cancel(stream_id)
        self._reject(stream_id, CANCELLED)

    def _reject(self, stream_id: int, error_code: int) -> None:
        self._peer.quic.stop_sending(stream_id, error_code)
        self._peer.quic.stop_receiving(stream_id, error_code)
        self._peer.touch()


class _StreamResponder:
    """The way back on one stream."""

    def __init__(self, peer: Peer, stream_id: int, request_id: int) -> None:
        self._peer = peer
        self._stream_id = stream_id
        self._request_id = request_id
        self._head_sent = False

    def judged(self, answered: Answered) -> None:
        self._peer.judged(answered.traffic_class)

    async def reply(self, reply: Reply, answered: Answered) -> None:
        answered.arrival.timeline.rtt_s = self._peer.quic.round_trip_s
        class_name, body = answered.traffic_class.name, reply.body
        length = len(body) if isinstance(body, bytes) else UNTIL_FIN
        head = encode(reply_header(self._request_id, reply, answered, length=length))
        if isinstance(body, bytes) and not self._peer.polices(class_name, len(body)):
            answered.bytes_out = len(body)
            self._write(head + body, ended=True)
            return
        self._write(head, ended=False)
        async for chunk in slices(body) if isinstance(body, bytes) else body:
            await self._peer.admit(class_name, len(chunk))
            answered.bytes_out += len(chunk)
            self._write(chunk, ended=False)
            await self._peer.room(self._stream_id, WRITE_AHEAD)
        self._write(b"", ended=True)

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        if self._head_sent:
            self._peer.quic.stop_sending(self._stream_id, BROKEN_OFF)
            self._peer.touch()
            return
        document = problem(refusal, answered.arrival.request_id)
        header = error_header(self._request_id, refusal, answered, length=len(document))
        self._write(encode(header) + document, ended=True)

    def _write(self, data: bytes, *, ended: bool) -> None:
        self._head_sent = True
        self._peer.quic.send_stream_data(self._stream_id, data, ended)
        self._peer.touch()
