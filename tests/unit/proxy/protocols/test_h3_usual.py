# SPDX-License-Identifier: Apache-2.0
"""What is read and written without aioquic's general way comes to the same, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pylsqpack
import pytest
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, encode_frame
from aioquic.h3.events import DataReceived, H3Event
from aioquic.quic.events import StreamDataReceived
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols import h3
from proxy.protocols.h3 import KNOWN_HEADS, MOST_KNOWN, BadHead, HeadReceived, Http3
from proxy.quic.connection import Connection

POST = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/v2/models/m/infer")]


class Wire:
    """As much of a connection as HTTP/3 asks."""

    def __init__(self) -> None:
        self.configuration = SimpleNamespace(is_client=False)
        self._quic_logger = None
        self._next = 3
        self.consumed = 0
        self.closed_with: int | None = None
        self.sent: dict[int, bytes] = {}

    def get_next_available_stream_id(self, is_unidirectional: bool = False) -> int:
        self._next += 4
        return self._next - 4

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        self.sent[stream_id] = self.sent.get(stream_id, b"") + data

    def consume(self, stream_id: int, count: int) -> None:
        self.consumed += count

    def close(self, error_code: int, reason_phrase: str) -> None:
        self.closed_with = error_code

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """Told by the events, too."""


class General(Http3):
    """All by aioquic's way."""

    def _usual(self, stream_id: int, data: bytes, *, ended: bool) -> list[H3Event] | None:
        return None


def codec(kind: type[Http3] = Http3) -> tuple[Http3, Wire]:
    wire = Wire()
    return kind(cast(Connection, wire)), wire


def section(fields: list[tuple[bytes, bytes]]) -> bytes:
    return cast(bytes, pylsqpack.Encoder().encode(0, fields)[1])


def told(event: H3Event) -> tuple[Any, ...]:
    if isinstance(event, HeadReceived):
        return event.stream_id, event.head, event.ended
    if isinstance(event, BadHead):
        return event.stream_id, event.detail, event.too_large, event.ended
    assert isinstance(event, DataReceived)
    return event.stream_id, event.data, event.stream_ended


Frames = st.lists(
    st.one_of(
        st.binary(max_size=100).map(lambda data: encode_frame(FrameType.DATA, data)),
        st.binary(max_size=5).map(lambda data: encode_uint_var(0x21) + encode_uint_var(len(data)) + data),
        st.just(encode_frame(FrameType.HEADERS, section([(b"x-checksum", b"1")]))),
        st.just(encode_frame(FrameType.HEADERS, section([(b":method", b"POST")]))),
    ),
    max_size=4,
)
Head = st.sampled_from(
    [
        encode_frame(FrameType.HEADERS, section(POST)),
        encode_frame(FrameType.HEADERS, section([*POST, (b"content-length", b"+3")])),
        encode_frame(FrameType.HEADERS, b"\x02\x00\xff"),
        encode_uint_var(FrameType.HEADERS) + encode_uint_var(1 << 20),
        encode_frame(FrameType.DATA, b"x"),
        b"",
    ]
)


@given(
    head=Head,
    frames=Frames,
    cuts=st.lists(st.integers(0, 400), max_size=4),
    cut_off=st.integers(0, 3),
    ended=st.sampled_from(["not", "with the last bytes", "alone"]),
    answered_after=st.none() | st.integers(0, 3),
)
def test_both_ways_come_to_the_same(
    head: bytes, frames: list[bytes], cuts: list[int], cut_off: int, ended: str, answered_after: int | None
) -> None:
    whole = head + b"".join(frames)
    whole = whole[: len(whole) - cut_off]
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [(whole[start:end], False) for start, end in pairwise(edges)]
    if ended == "with the last bytes":
        pieces[-1] = (pieces[-1][0], True)
    elif ended == "alone":
        pieces.append((b"", True))
    results = []
    for kind in (Http3, General):
        http, wire = codec(kind)
        events = []
        for number, (data, fin) in enumerate(pieces):
            events.append([told(each) for each in http.receive(StreamDataReceived(data, fin, 0))])
            if number == answered_after and events[0]:
                http.send_reply(0, [(b":status", b"200")], b"", ended=True)
        # Of bytes that are ended nothing is left to credit to the client.
        credited = wire.consumed if ended == "not" else None
        results.append((events, credited, wire.closed_with, http._is_done, 0 in http._stream, http._next_request))
    assert results[0] == results[1]


def test_a_request_in_one_packet_takes_the_short_way() -> None:
    http, _ = codec()
    request = encode_frame(FrameType.HEADERS, section(POST)) + encode_frame(FrameType.DATA, b"{}")
    assert http._usual(0, request, ended=True) is not None
    assert http._usual(4, request[:-1], ended=False) is not None
    assert http._usual(4, request[-1:], ended=True) is not None


def test_a_head_that_comes_again_is_the_same_one_and_few_are_kept() -> None:
    http, _ = codec()
    sections = [section([*POST, (b"x-number", b"%d" % number)]) for number in range(2 * KNOWN_HEADS)]
    sections.append(section([*POST, (b"x-long", bytes(MOST_KNOWN).replace(b"\0", b"x"))]))
    for number, each in enumerate([*sections, *sections]):
        (event,) = http.receive(StreamDataReceived(encode_frame(FrameType.HEADERS, each), True, 4 * number))
        assert isinstance(event, HeadReceived)
        assert event.head.fields[0][1] == (
            b"%d" % (number % len(sections)) if number % len(sections) < 32 else b"x" * 512
        )
    assert len(http._known) == KNOWN_HEADS
    assert max(map(len, http._known)) <= MOST_KNOWN


def test_a_head_that_cannot_be_decoded_ends_the_connection() -> None:
    http, wire = codec()
    assert http.receive(StreamDataReceived(encode_frame(FrameType.HEADERS, b"\x02\x00\xff"), True, 0)) == []
    assert wire.closed_with == ErrorCode.QPACK_DECOMPRESSION_FAILED


NAMES = (b":status", b"content-type", b"content-length", b"server-timing", b"x-request-id", b"etag", b"date", b"x-own")


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=400)), min_size=1, max_size=8),
    st.binary(max_size=20_000),
)
def test_a_reply_reads_as_it_was_written(fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    http, wire = codec()
    http.send_reply(0, fields, body, ended=True)
    http.send_body(0, body, ended=True)
    written = wire.sent[0]
    size, start = h3._read_size(written, 1)
    _, read = pylsqpack.Decoder(0, 0).feed_header(0, written[start : start + size])
    assert list(read) == fields
    data = encode_frame(FrameType.DATA, body) if body else b""
    assert written[:1] == b"\x01"
    assert written[start + size :] == 2 * data


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 60_000])
def test_the_length_of_a_value_is_written_as_hpack_says(length: int) -> None:
    value = b"v" * length
    line = h3._new_line(b"server-timing", value)
    assert pylsqpack.Decoder(0, 0).feed_header(0, b"\x00\x00" + line)[1] == [(b"server-timing", value)]


@pytest.mark.parametrize("count", [0, 63, 64, 16_383, 16_384, 1 << 30])
def test_sizes_are_quic_s(count: int) -> None:
    assert h3._size(count) == encode_uint_var(count)
    assert h3._read_size(h3._size(count), 0) == (count, len(h3._size(count)))
    assert h3._read_size(h3._size(count)[:-1], 0)[1] > len(h3._size(count)) - 1
