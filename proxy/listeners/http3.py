# SPDX-License-Identifier: Apache-2.0
"""One connection's HTTP/3: heads become arrivals, bodies flow at the backend's pace, replies at the client's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Arrival, Walk
from proxy.listeners.exchanges import Exchanges
from proxy.listeners.marks import slices
from proxy.listeners.quic import WRITE_AHEAD, Peer
from proxy.protocols.answers import HeadFields, error_event, refusal_answer, reply_head
from proxy.protocols.fields import RequestHead
from proxy.protocols.h3 import BadHead, DataReceived, ErrorCode, HeadReceived, Http3
from proxy.protocols.http_arrival import Origin, arrival
from proxy.quic.connection import QuicEvent, StopSendingReceived, StreamReset
from qos.timeline import Timeline

__all__ = ["LAST_WORDS_S", "Http3Session"]

LAST_WORDS_S = 1.0
"""Longest wait for the client to have the event that says why its token stream breaks off, before the reset that may
overtake it (RFC 9000 section 3.2)."""


class Http3Session:
    """HTTP/3 on one QUIC connection."""

    goodbye = int(ErrorCode.H3_NO_ERROR)

    def __init__(self, peer: Peer, walk: Walk, *, listener: str, max_body: int, clock: Callable[[], float]) -> None:
        self._peer = peer
        self._http = Http3(peer.quic)
        self._listener = listener
        self._max_body = max_body
        self._clock = clock
        self._exchanges = Exchanges(walk)
        self._incoming: dict[int, Body] = {}

    def __repr__(self) -> str:
        return f"<Http3Session {len(self._exchanges)} in flight>"

    @property
    def idle(self) -> bool:
        return not self._exchanges

    def handle(self, event: QuicEvent) -> None:
        for each in self._http.receive(event):
            if isinstance(each, HeadReceived):
                self._begin(each.stream_id, each.head, ended=each.ended)
            elif isinstance(each, DataReceived):
                self._data(each.stream_id, each.data, ended=each.stream_ended)
            elif isinstance(each, BadHead):
                reason = Reason.FIELDS_TOO_LARGE if each.too_large else Reason.BAD_REQUEST
                self._refuse(each.stream_id, Refused(reason, each.detail), ended=each.ended)
        if isinstance(event, StopSendingReceived) or (
            # The client answers our own STOP_SENDING with a reset (RFC 9000 section 3.5): the reply must still arrive.
            isinstance(event, StreamReset) and not self._peer.quic.replied(event.stream_id)
        ):
            self._gone(event.stream_id)

    def drain(self) -> None:
        self._http.send_goaway()

    def retire(self) -> None:
        if self._http.begun:  # else a client that has just connected would have nowhere to send its first one
            self._http.send_goaway(last=False)

    def closed(self) -> None:
        for body in self._incoming.values():
            body.fail(Refused(Reason.CANCELLED, "the client's connection is gone"))
        self._incoming.clear()
        self._exchanges.cancel_all()

    def _begin(self, stream_id: int, request: RequestHead, *, ended: bool) -> None:
        length = request.content_length
        body = Body(limit=self._max_body, declared=length, consumed=partial(self._peer.consume, stream_id))
        arrived = arrival(request, body, self._origin())
        if ended:
            arrived.refusal = arrived.refusal or _length_mismatch(0, length, ended=True)
            body.feed(b"", ended=True)
        else:
            self._incoming[stream_id] = body
        self._start(stream_id, arrived, head_only=request.method == b"HEAD")

    def _refuse(self, stream_id: int, refusal: Refused, *, ended: bool) -> None:
        """A head that hygiene stopped: answered and recorded like any request, and forwarded nowhere."""
        body = Body(limit=0, consumed=partial(self._peer.consume, stream_id))
        if not ended:
            self._incoming[stream_id] = body
        self._start(stream_id, arrival(refusal, body, self._origin()), head_only=False)

    def _origin(self) -> Origin:
        return Origin(
            transport="h3",
            listener=self._listener,
            client=self._peer.address[0],
            dscp=self._peer.dscp,
            timeline=Timeline(self._clock(), rtt_s=self._peer.quic.round_trip_s),
            max_body=self._max_body,
        )

    def _start(self, stream_id: int, arrived: Arrival, *, head_only: bool) -> None:
        responder = Http3Responder(self._peer, self._http, stream_id, self._exchanges, head_only=head_only)
        self._exchanges.start(stream_id, arrived, responder, ended=partial(self._ended, stream_id, arrived.body))

    def _data(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        body = self._incoming.get(stream_id)
        if body is None:
            self._peer.consume(stream_id, len(data))  # of a request that is answered already
            return
        mismatch = _length_mismatch(body.received + len(data), body.declared, ended=ended)
        if mismatch is not None:
            body.fail(mismatch)
        body.feed(data, ended=ended)
        if ended:
            del self._incoming[stream_id]

    def _ended(self, stream_id: int, body: Body) -> None:
        """The walk is over: what it left unread of the body is dropped, and a client still sending is asked to stop."""
        if not body.drained:
            body.fail(Refused(Reason.CANCELLED, "the request is over"))
        if self._incoming.pop(stream_id, None) is not None:
            self._peer.quic.stop_receiving(stream_id, ErrorCode.H3_NO_ERROR)
            self._peer.touch()

    def _gone(self, stream_id: int) -> None:
        body = self._incoming.pop(stream_id, None)
        if body is not None:
            body.fail(Refused(Reason.CANCELLED, "the client reset its stream"))
        self._exchanges.cancel(stream_id)
        self._http.abort(stream_id, ErrorCode.H3_REQUEST_CANCELLED)


class Http3Responder:
    """The way back on one request stream. exchanges: of its connection."""

    def __init__(self, peer: Peer, http: Http3, stream_id: int, exchanges: Exchanges, *, head_only: bool) -> None:
        self._peer = peer
        self._http = http
        self._stream_id = stream_id
        self._exchanges = exchanges
        self._head_only = head_only
        self._head_sent = False
        self._streaming = False

    def judged(self, answered: Answered) -> None:
        self._peer.judged(answered.traffic_class)

    async def reply(self, reply: Reply, answered: Answered) -> None:
        answered.arrival.timeline.rtt_s = self._peer.quic.round_trip_s
        status, fields = reply_head(reply, answered)
        section = self._section(status, fields)
        self._head_sent = True
        self._streaming = reply.streaming and not self._head_only
        class_name, body = answered.traffic_class.name, reply.body
        if isinstance(body, bytes) and not self._peer.polices(class_name, len(body)):
            answered.bytes_out = len(body)
            self._http.send_reply(self._stream_id, section, b"" if self._head_only else body, ended=True)
            self._go()
            return
        self._http.send_reply(self._stream_id, section, b"", ended=False)
        self._peer.touch()
        async for chunk in slices(body) if isinstance(body, bytes) else body:
            answered.bytes_out += len(chunk)
            if not self._head_only:
                if self._peer.polices(class_name, len(chunk)):
                    await self._peer.admit(class_name, len(chunk))
                self._http.send_body(self._stream_id, chunk, ended=False)
                self._peer.touch()
                if self._peer.quic.buffered(self._stream_id) > WRITE_AHEAD:
                    await self._peer.room(self._stream_id, WRITE_AHEAD)
        self._http.send_body(self._stream_id, b"", ended=True)
        self._peer.touch()

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        if self._head_sent:
            if self._streaming:
                await self._last_words(refusal, answered)
            # Never a clean end after a broken one: the client must see that the body is not whole.
            self._http.abort(self._stream_id, ErrorCode.H3_INTERNAL_ERROR)
        else:
            status, fields, body = refusal_answer(refusal, answered)
            section = self._section(status, fields)
            self._http.send_reply(self._stream_id, section, b"" if self._head_only else body, ended=True)
        self._go()

    def _go(self) -> None:
        """The end is written. The only one in flight need not wait for others to go along."""
        if len(self._exchanges) == 1:
            self._peer.flush()
        else:
            self._peer.touch()

    async def _last_words(self, refusal: Refused, answered: Answered) -> None:
        self._http.send_body(self._stream_id, error_event(refusal, answered.arrival.request_id), ended=False)
        self._peer.touch()
        with suppress(TimeoutError):  # a client that does not read learns from the reset alone
            async with asyncio.timeout(LAST_WORDS_S):
                await self._peer.room(self._stream_id, 0)

    def _section(self, status: int, fields: HeadFields) -> HeadFields:
        if self._head_only:
            # RFC 9110 section 8.6 lets us leave it out, and aioquic's client takes it for a promise of bytes.
            fields = [each for each in fields if each[0] != b"content-length"]
        return [(b":status", b"%d" % status), *fields]


def _length_mismatch(received: int, declared: int | None, *, ended: bool) -> Refused | None:
    if declared is None or received == declared or (received < declared and not ended):
        return None
    return Refused(Reason.BAD_REQUEST, f"content-length says {declared} bytes, {received} came")
