# SPDX-License-Identifier: Apache-2.0
"""`https://`: the Open Inference Protocol over HTTP/3, binary tensors both ways."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import quote

from aioquic.h3.connection import ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamReset

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.messages import EncodedReply, EncodedRequest, Stages
from inferlane.transports.link import QuicLink
from inferlane.transports.peer import Answer, settle
from inferlane.transports.problems import read_problem
from inferlane.transports.sockets import Address

__all__ = ["Http3", "read_reply", "read_server_timing", "request_fields"]

_LONGEST_NUMBER = 15
"""Digits; anything longer is nonsense and would cost time to convert."""
_MAX_DSCP = 63


@dataclass(slots=True)
class _Exchange:
    """A reply while it arrives."""

    answer: Answer
    room: int
    """Bytes of body that may still come."""
    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: list[bytes] = field(default_factory=list)


class Http3:
    """One HTTP/3 connection; any number of requests at once."""

    def __init__(
        self, address: Address, configuration: QuicConfiguration, *, dscp: int, authority: str, max_reply: int
    ) -> None:
        self._link = QuicLink(address, configuration, dscp=dscp, on_event=self._on_event)
        self._authority = authority.encode()
        self._max_reply = max_reply
        self._exchanges: dict[int, _Exchange] = {}
        # SETTINGS and the QPACK streams wait in the connection until the handshake is done.
        self._http = H3Connection(self._link.quic)

    def __repr__(self) -> str:
        return f"<Http3 {self._link!r}>"

    async def connect(self) -> None:
        """Shake hands. Raises ConnectionFailed."""
        await self._link.connect()

    @property
    def alive(self) -> bool:
        """Whether a new request has a chance here."""
        return self._link.peer.alive

    async def exchange(self, request: EncodedRequest) -> EncodedReply:
        """One request, one reply. Raises Refused or ConnectionFailed; cancelled, it tells the gateway."""
        stream_id = self._link.quic.get_next_available_stream_id()
        answer = self._link.peer.expect(stream_id)
        self._exchanges[stream_id] = _Exchange(answer, self._max_reply)
        self._http.send_headers(stream_id, request_fields(request, self._authority, monotonic()))
        self._http.send_data(stream_id, request.body, end_stream=True)
        self._link.flush_soon()
        try:
            return await self._link.peer.answer(stream_id, answer, self._abandon)
        finally:
            self._exchanges.pop(stream_id, None)

    def close(self) -> None:
        """End the connection; what is in flight fails."""
        self._link.close(ErrorCode.H3_NO_ERROR, "the client was closed")

    def _abandon(self, stream_id: int) -> None:
        self._link.abandon(stream_id, ErrorCode.H3_REQUEST_CANCELLED)

    def _on_event(self, event: QuicEvent) -> None:
        for each in self._http.handle_event(event):
            self._on_http(each)
        if isinstance(event, StreamReset):
            exchange = self._exchanges.pop(event.stream_id, None)
            if exchange is not None:
                settle(exchange.answer, _reset(event.error_code))

    def _on_http(self, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived | DataReceived):
            return
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None:
            return  # a pushed reply, or one that nobody waits for any more
        if isinstance(event, HeadersReceived):
            if not _interim(event.headers) and not exchange.fields:  # else: trailers, which say nothing to us
                exchange.fields = dict(event.headers)
        else:
            self._take(event.stream_id, exchange, event.data)
        if event.stream_ended and self._exchanges.pop(event.stream_id, None) is not None:
            settle(exchange.answer, _read(exchange))

    def _take(self, stream_id: int, exchange: _Exchange, piece: bytes) -> None:
        exchange.room -= len(piece)
        if exchange.room >= 0:
            exchange.body.append(piece)
            return
        del self._exchanges[stream_id]
        self._abandon(stream_id)
        settle(exchange.answer, Refused(Reason.TOO_LARGE, f"the reply is longer than {self._max_reply} bytes"))


def request_fields(request: EncodedRequest, authority: bytes, now: float) -> Headers:
    """The head of one inference. Pure."""
    path = f"/v2/models/{quote(request.model, safe='')}"
    if request.version:
        path += f"/versions/{quote(request.version, safe='')}"
    json_length = request.json_length
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", authority),
        (b":path", f"{path}/infer".encode()),
        (b"content-type", b"application/json" if json_length is None else b"application/octet-stream"),
        (b"content-length", b"%d" % len(request.body)),
        (b"x-request-id", request.name.encode()),
    ]
    if json_length is not None:
        fields.append((b"inference-header-content-length", b"%d" % json_length))
    if request.class_name is not None:
        fields.append((b"inferlane-class", request.class_name.encode()))
    if request.timeout_s is not None:
        fields.append((b"inferlane-timeout", _duration(request.deadline - now)))
    return fields


def read_reply(fields: dict[bytes, bytes], body: bytes) -> EncodedReply:
    """A whole reply; a refusal is raised. Pure."""
    status = int(fields.get(b":status", b"0"))
    if not 200 <= status < 300:
        raise read_problem(status, body, retry_after_s=_seconds(fields.get(b"retry-after", b"")))
    json_length = fields.get(b"inference-header-content-length", b"")
    return EncodedReply(
        body=body,
        json_length=int(json_length) if json_length.isdigit() and len(json_length) <= _LONGEST_NUMBER else None,
        stages=read_server_timing(fields.get(b"server-timing", b"")),
        request_id=_text(fields.get(b"x-request-id")),
        served_class=_text(fields.get(b"inferlane-class")),
        dscp_seen=_dscp(fields.get(b"inferlane-dscp", b"")),
        endpoint=_text(fields.get(b"inferlane-endpoint")),
    )


def read_server_timing(value: bytes) -> Stages:
    """`queue;dur=0.1, compute;dur=2.5` in ms -> Stages in seconds. What is not ours or not a number is left out."""
    seconds: dict[str, float] = {}
    for metric in value.decode("ascii", "replace").split(","):
        name, _, parameters = metric.strip().partition(";")
        duration = parameters.strip().removeprefix("dur=")
        if name in ("network", "queue", "backend", "compute") and (parsed := _number(duration)) is not None:
            seconds[name] = parsed / 1e3
    return Stages(**seconds)


def _duration(seconds: float) -> bytes:
    """As Inferlane-Timeout has it: a unit, and nine digits before it at most."""
    if seconds < 999:
        return b"%dus" % max(1, round(seconds * 1e6))
    return b"%ds" % min(seconds, 999_999_999)


def _read(exchange: _Exchange) -> EncodedReply | Refused:
    try:
        return read_reply(exchange.fields, b"".join(exchange.body))
    except Refused as refusal:
        return refusal


def _interim(headers: Headers) -> bool:
    return any(name == b":status" and value.startswith(b"1") for name, value in headers)


def _reset(error_code: int) -> Exception:
    if error_code == ErrorCode.H3_REQUEST_REJECTED:  # nothing was done for it (RFC 9114 section 4.1.1)
        return Refused(Reason.DRAINING, "the gateway takes no more requests on this connection")
    return ConnectionFailed(f"the gateway broke the reply off (0x{error_code:x})")


def _seconds(value: bytes) -> float | None:
    return _number(value.decode("ascii", "replace"))


def _dscp(value: bytes) -> int | None:
    return int(value) if len(value) <= 2 and value.isdigit() and int(value) <= _MAX_DSCP else None


def _number(text: str) -> float | None:
    return float(text) if len(text) <= _LONGEST_NUMBER and text.replace(".", "", 1).isdecimal() else None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
