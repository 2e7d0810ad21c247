# SPDX-License-Identifier: Apache-2.0
"""The one door to aioquic's HTTP/3: a server codec with limits and request hygiene, as overrides of its privates.

What is added to aioquic 1.7.2 (measured on the raw wheel): 9 KB of QPACK became 20 MB of headers, so the dynamic
table is off and HEADERS are capped before they are buffered; an unfinished 1 TiB frame was buffered without
limit, so bytes held back are not credited to the window; a bad request closed its whole connection or was let
through, so hygiene is ours (proxy/protocols/fields.py) and costs the request alone; GOAWAY did not exist.

Without a dynamic table a field section means the same each time it is seen, and a reply's field is the same bytes each
time it is sent: what most requests and replies look like is read and written here, aioquic's general way for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pylsqpack
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import (
    ErrorCode,
    FrameType,
    H3Connection,
    H3Stream,
    HeadersState,
    ProtocolError,
    Setting,
    encode_frame,
    stream_is_request_response,
)
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.events import QuicEvent, StreamDataReceived

from proxy.protocols.fields import MAX_FIELD_SECTION, FieldsTooLarge, MalformedRequest, RequestHead, clean
from proxy.quic.connection import Connection

__all__ = ["BadHead", "DataReceived", "ErrorCode", "HeadReceived", "Http3"]

MAX_HEADERS_FRAME = 16 * 1024
"""On the wire; static table references expand it to at most about 1.3 MB before fields.py counts them."""
KNOWN_HEADS, MOST_KNOWN = 16, 512
"""Heads that a connection's client has sent and may send again, and the most bytes of one: a client without trace
contexts sends one per model. No other connection's: how soon an answer comes must not tell who else asked for it."""
KNOWN_LINES, MOST_OF_LINE = 1024, 64
"""Encoded fields of replies that are kept, and the most bytes of a value."""
_LARGEST_REQUEST = (1 << 62) - 4
"""The last stream that a client can open (RFC 9000 section 2.1)."""
_OWN_TO_EACH = frozenset({b"content-length", b"server-timing", b"x-request-id"})
"""Fields whose values are not worth keeping."""


@dataclass(slots=True)
class HeadReceived(H3Event):
    """A clean request head."""

    stream_id: int
    head: RequestHead
    ended: bool


@dataclass(slots=True)
class BadHead(H3Event):
    """A head that hygiene refused."""

    stream_id: int
    detail: str
    too_large: bool
    ended: bool


class ExcessiveLoadError(ProtocolError):
    error_code = ErrorCode.H3_EXCESSIVE_LOAD


class _Request(H3Stream):
    """aioquic sets 18 attributes of each stream; of most requests nearly all stay as they are."""

    blocked = False
    blocked_frame_size = None
    blocked_frame_type = None
    blocked_push_id = None
    buffer = b""
    sending_ended = False
    frame_size: int | None = None
    frame_type: int | None = None
    headers_recv_state = HeadersState.AFTER_HEADERS
    headers_send_state = HeadersState.INITIAL
    interim_response_received = False
    push_id = None
    session_id = None
    stream_type = None
    expected_content_length = None
    content_length = 0

    def __init__(self, stream_id: int, *, ended: bool) -> None:
        self.stream_id = stream_id
        self.receiving_ended = ended


class Http3(H3Connection):
    """One connection's HTTP/3: QUIC events in, heads and data out; replies in, stream bytes out."""

    def __init__(self, quic: Connection) -> None:
        super().__init__(quic)
        self._connection = quic
        self._decoder = pylsqpack.Decoder(0, 0)
        self._goaway: int | None = None
        self._next_request = 0
        self._known: dict[bytes, RequestHead] = {}

    def receive(self, event: QuicEvent) -> list[H3Event]:
        """One QUIC event -> HTTP events. Bytes that are neither handed out nor held are credited here."""
        if not isinstance(event, StreamDataReceived):
            return self.handle_event(event)
        stream_id, data = event.stream_id, event.data
        if stream_is_request_response(stream_id):
            self._next_request = max(self._next_request, stream_id + 4)
            events = None if self._is_done else self._usual(stream_id, data, ended=event.end_stream)
            if events is not None:
                return events
        held = self._held(stream_id)
        events = self.handle_event(event)
        handed_out = sum(len(each.data) for each in events if isinstance(each, DataReceived))
        self._connection.consume(stream_id, held + len(data) - self._held(stream_id) - handed_out)
        return events

    def send_reply(self, stream_id: int, head: Sequence[tuple[bytes, bytes]], body: bytes, *, ended: bool) -> None:
        """Head and first (or only) body bytes in one write."""
        # Required Insert Count and Base are 0: nothing here refers to a dynamic table (RFC 9204 section 4.5.1).
        section = b"\x00\x00" + b"".join(
            [
                _new_line(name, value)
                if name in _OWN_TO_EACH or len(value) > MOST_OF_LINE
                else _known_line(name, value)
                for name, value in head
            ]
        )
        payload = b"\x01" + _size(len(section)) + section
        if body:
            payload += b"\x00" + _size(len(body)) + body
        self._send(stream_id, payload, ended=ended)

    def send_body(self, stream_id: int, body: bytes, *, ended: bool) -> None:
        """More body bytes."""
        self._send(stream_id, b"\x00" + _size(len(body)) + body if body else b"", ended=ended)

    def send_goaway(self, *, last: bool = True) -> None:
        """No request after those seen will be served (RFC 9114 section 5.2). Not last: those on their way still will,
        but the client shall ask on another connection."""
        stream_id = self._next_request if last else _LARGEST_REQUEST
        if self._local_control_stream_id is None or (self._goaway is not None and stream_id >= self._goaway):
            return
        self._goaway = stream_id
        frame = encode_frame(FrameType.GOAWAY, encode_uint_var(stream_id))
        self._connection.send_stream_data(self._local_control_stream_id, frame)

    @property
    def begun(self) -> bool:
        """Whether there was a request."""
        return self._next_request > 0

    def abort(self, stream_id: int, error_code: int) -> None:
        """Break an exchange off in both directions."""
        self._connection.stop_sending(stream_id, error_code)
        self._connection.stop_receiving(stream_id, error_code)
        self._sending_ended(stream_id)

    def _send(self, stream_id: int, payload: bytes, *, ended: bool) -> None:
        self._connection.send_stream_data(stream_id, payload, ended)
        if ended:
            self._sending_ended(stream_id)

    def _sending_ended(self, stream_id: int) -> None:
        stream = self._stream.get(stream_id)
        if stream is not None:
            stream.sending_ended = True
            if stream.is_ended():
                del self._stream[stream_id]

    def _held(self, stream_id: int) -> int:
        stream = self._stream.get(stream_id)
        return 0 if stream is None else len(stream.buffer)

    def _usual(self, stream_id: int, data: bytes, *, ended: bool) -> list[H3Event] | None:
        """What nearly all stream bytes are: a head, with one DATA frame behind it or its begin, or more of that frame.
        None: they are something else, which aioquic shall look at, and nothing was done."""
        stream = self._stream.get(stream_id)
        if stream is None:
            return self._first_bytes(stream_id, data, ended=ended)
        left = stream.frame_size
        if stream.frame_type != FrameType.DATA or left is None or stream.buffer or not data or len(data) > left:
            return None
        if len(data) < left:
            if ended:
                return None  # cut off: an error of the connection's
            stream.frame_size = left - len(data)
        else:
            stream.frame_size = stream.frame_type = None
            if ended:
                stream.receiving_ended = True
                if stream.is_ended():
                    del self._stream[stream_id]
        return [DataReceived(data, stream_id, ended)]

    def _first_bytes(self, stream_id: int, data: bytes, *, ended: bool) -> list[H3Event] | None:
        size, start = _read_size(data, 1)
        end = start + size
        if not data or data[0] != FrameType.HEADERS or end > len(data) or size > MAX_HEADERS_FRAME:
            return None
        body, left = b"", 0
        if has_body := end < len(data):
            left, begin = _read_size(data, end + 1)
            body = data[begin:]
            left -= len(body)
            if data[end] != FrameType.DATA or left < 0 or begin > len(data) or (left and ended):
                return None
        head = self._head(stream_id, data[start:end], ended=ended and not has_body)
        if head is None:
            return None
        self._stream[stream_id] = stream = _Request(stream_id, ended=ended)
        if left:
            stream.frame_type, stream.frame_size = FrameType.DATA, left
        if not ended:
            self._connection.consume(stream_id, len(data) - len(body))
        return [head, DataReceived(body, stream_id, ended)] if body or (has_body and ended) else [head]

    def _head(self, stream_id: int, section: bytes, *, ended: bool) -> H3Event | None:
        """None: it cannot be decoded."""
        head = self._known.get(section)
        if head is None:
            try:
                _, fields = self._decoder.feed_header(stream_id, section)
            except pylsqpack.DecompressionFailed:
                return None
            found = _judged(stream_id, fields, ended=ended)
            if not isinstance(found, HeadReceived) or len(section) > MOST_KNOWN:
                return found
            if len(self._known) >= KNOWN_HEADS:
                del self._known[next(iter(self._known))]
            self._known[section] = head = found.head
        return HeadReceived(stream_id, head, ended)

    def _get_local_settings(self) -> dict[int, int]:
        return {
            Setting.QPACK_MAX_TABLE_CAPACITY: 0,
            Setting.QPACK_BLOCKED_STREAMS: 0,
            Setting.MAX_FIELD_SECTION_SIZE: MAX_FIELD_SECTION,
            Setting.DUMMY: 1,
        }

    def _handle_control_frame(self, frame_type: int, frame_data: bytes) -> None:
        super()._handle_control_frame(frame_type, frame_data)
        if frame_type == FrameType.SETTINGS:
            # No dynamic table towards the client either: every reply has an id and times of its own, so each would be
            # inserted, and each acknowledged by a packet more (measured: 0.6 packets a request).
            self._encoder = pylsqpack.Encoder()

    def _check_request_or_push_frame_type(self, frame_type: int, stream: H3Stream) -> None:
        super()._check_request_or_push_frame_type(frame_type, stream)
        if frame_type == FrameType.WEBTRANSPORT_STREAM:
            raise ExcessiveLoadError("WebTransport was not offered")
        if frame_type == FrameType.HEADERS and (stream.frame_size or 0) > MAX_HEADERS_FRAME:
            raise ExcessiveLoadError(f"HEADERS of more than {MAX_HEADERS_FRAME} bytes")

    def _handle_request_or_push_frame(
        self, frame_type: int, frame_data: bytes | None, stream: H3Stream, stream_ended: bool
    ) -> list[H3Event]:
        if frame_type != FrameType.HEADERS or stream.headers_recv_state != HeadersState.INITIAL:
            events = super()._handle_request_or_push_frame(frame_type, frame_data, stream, stream_ended)
            # Trailers are checked and dropped (RFC 9110 section 6.5.1), but they may be what ends the body.
            return [
                DataReceived(b"", each.stream_id, each.stream_ended) if isinstance(each, HeadersReceived) else each
                for each in events
            ]
        section = self._decode_headers(stream.stream_id, frame_data)
        stream.headers_recv_state = HeadersState.AFTER_HEADERS
        return [_judged(stream.stream_id, section, ended=stream_ended)]


def _judged(stream_id: int, section: Sequence[tuple[bytes, bytes]], *, ended: bool) -> HeadReceived | BadHead:
    try:
        return HeadReceived(stream_id, clean(section), ended)
    except FieldsTooLarge as error:
        return BadHead(stream_id, str(error), too_large=True, ended=ended)
    except MalformedRequest as error:
        return BadHead(stream_id, str(error), too_large=False, ended=ended)


def _read_size(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (RFC 9000 section 16) and where it ends: behind `data` if it is not all there."""
    if at >= len(data):
        return 0, len(data) + 1
    first = data[at]
    if first < 0x40:
        return first, at + 1
    end = at + (1 << (first >> 6))
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * (end - at) - 2)) - 1), end


def _size(count: int) -> bytes:
    """A variable-length integer."""
    if count < 0x40:
        return bytes((count,))
    return (count | 0x4000).to_bytes(2, "big") if count < 0x4000 else encode_uint_var(count)


def _new_line(name: bytes, value: bytes) -> bytes:
    """A field whose value is not worth keeping (RFC 9204 section 4.5)."""
    count = len(value)
    if count < 0x7F:
        return _name(name) + bytes((count,)) + value
    length = bytearray((0x7F,))  # RFC 7541 section 5.1
    count -= 0x7F
    while count >= 0x80:
        length.append(0x80 | (count & 0x7F))
        count >>= 7
    length.append(count)
    return _name(name) + length + value


@lru_cache(maxsize=KNOWN_LINES)
def _known_line(name: bytes, value: bytes) -> bytes:
    """A field whose value comes again."""
    return _encoded(name, value)


@lru_cache(maxsize=KNOWN_LINES)
def _name(name: bytes) -> bytes:
    """A line as far as its value, which follows with its length and without Huffman's code."""
    # Not of an empty value: the static table has whole lines with those.
    line = _encoded(name, b"\x01")
    assert line.endswith(b"\x01\x01")  # its length, and Huffman's code would be longer
    return line[:-2]


def _encoded(name: bytes, value: bytes) -> bytes:
    _, section = pylsqpack.Encoder().encode(0, [(name, value)])
    return section[2:]
