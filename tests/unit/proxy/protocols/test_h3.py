# SPDX-License-Identifier: Apache-2.0
"""HTTP/3 with a real aioquic client in memory: hygiene costs one request, limits hold before anything is stored."""

from __future__ import annotations

import inspect
from pathlib import Path

import pylsqpack
import pytest
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, H3Connection, Setting, encode_frame
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.events import ConnectionTerminated, StreamReset

from proxy.protocols.h3 import BadHead, HeadReceived, Http3
from proxy.quic.configuration import STREAM_WINDOW
from tests.fakes.quic import Http3Client, Pair

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/v2")]


class Conversation:
    """A client and our codec over one connection."""

    def __init__(self, tmp_path: Path) -> None:
        self.pair = Pair(tmp_path)
        self.pair.server_events.clear()
        self.server = Http3(self.pair.server)
        self.client = Http3Client(self.pair)
        self.received: list[H3Event] = []

    def run(self, rounds: int = 6) -> None:
        for _ in range(rounds):
            self.pair.run(1)
            for event in self.pair.server_events:
                self.received += self.server.receive(event)
            self.pair.server_events.clear()

    def raw_stream(self, data: bytes, *, ended: bool = False) -> int:
        stream_id = self.pair.client.get_next_available_stream_id()
        self.pair.client.send_stream_data(stream_id, data, ended)
        self.run()
        return stream_id

    def closed_with(self) -> int | None:
        for event in self.pair.client_events:
            if isinstance(event, ConnectionTerminated):
                return event.error_code
        return None


@pytest.fixture
def talk(tmp_path: Path) -> Conversation:
    return Conversation(tmp_path)


def test_the_privates_we_override_are_what_they_were() -> None:
    for name in (
        "_get_local_settings",
        "_check_request_or_push_frame_type",
        "_handle_request_or_push_frame",
        "_decode_headers",
        "_encode_headers",
    ):
        assert callable(getattr(H3Connection, name))
    assert list(inspect.signature(H3Connection._handle_request_or_push_frame).parameters) == [
        "self",
        "frame_type",
        "frame_data",
        "stream",
        "stream_ended",
    ]


def test_request_and_reply(talk: Conversation) -> None:
    stream_id = talk.pair.client.get_next_available_stream_id()
    talk.client.http.send_headers(stream_id, [*GET, (b"x-one", b"1")])
    talk.client.http.send_data(stream_id, b"body", end_stream=True)
    talk.run()
    head, data = talk.received
    assert isinstance(head, HeadReceived)
    assert head.head.fields == ((b"x-one", b"1"),)
    assert isinstance(data, DataReceived)
    assert (data.data, data.stream_ended) == (b"body", True)
    talk.server.send_reply(stream_id, [(b":status", b"200")], b"answer", ended=True)
    talk.run()
    answers = talk.client.events()
    assert isinstance(answers[0], HeadersReceived)
    assert isinstance(answers[-1], DataReceived)
    assert b"".join(each.data for each in answers if isinstance(each, DataReceived)) == b"answer"
    assert not talk.server._stream.get(stream_id)


def test_our_settings_leave_no_room_for_a_qpack_bomb(talk: Conversation) -> None:
    talk.run()
    talk.client.events()
    settings = talk.client.http.received_settings
    assert settings is not None
    assert settings[Setting.QPACK_MAX_TABLE_CAPACITY] == 0
    assert settings[Setting.QPACK_BLOCKED_STREAMS] == 0
    assert Setting.MAX_FIELD_SECTION_SIZE in settings
    assert Setting.ENABLE_CONNECT_PROTOCOL not in settings


def test_a_malformed_request_costs_itself_alone(talk: Conversation) -> None:
    encoder = pylsqpack.Encoder()
    bad = talk.raw_stream(
        encode_frame(FrameType.HEADERS, encoder.encode(0, [*GET, (b"content-length", b"+3")])[1]), ended=False
    )
    good = talk.raw_stream(encode_frame(FrameType.HEADERS, encoder.encode(4, GET)[1]), ended=True)
    refused, accepted = talk.received
    assert isinstance(refused, BadHead)
    assert refused.stream_id == bad
    assert isinstance(accepted, HeadReceived)
    assert accepted.stream_id == good
    assert talk.closed_with() is None


def test_trailers_are_dropped_and_end_the_body(talk: Conversation) -> None:
    encoder = pylsqpack.Encoder()
    frames = (
        encode_frame(FrameType.HEADERS, encoder.encode(0, GET)[1]),
        encode_frame(FrameType.DATA, b"body"),
        encode_frame(FrameType.HEADERS, encoder.encode(0, [(b"x-checksum", b"1")])[1]),
    )
    talk.raw_stream(b"".join(frames), ended=True)
    head, data, end = talk.received
    assert isinstance(head, HeadReceived)
    assert head.head.fields == ()
    assert isinstance(data, DataReceived) and isinstance(end, DataReceived)
    assert (data.data, data.stream_ended, end.data, end.stream_ended) == (b"body", False, b"", True)


def test_static_table_references_beyond_the_limit_are_too_large(talk: Conversation) -> None:
    # 14 KB of references to a long entry: the worst that is left when the dynamic table is closed.
    content_security_policy = b"\xff\x16"  # static entry 85, RFC 9204 appendix A
    bomb = b"\x00\x00" + content_security_policy * 7000
    talk.raw_stream(encode_frame(FrameType.HEADERS, bomb), ended=True)
    assert [type(each) for each in talk.received] == [BadHead]


def test_a_headers_frame_over_the_cap_is_refused_before_it_is_stored(talk: Conversation) -> None:
    talk.raw_stream(encode_uint_var(FrameType.HEADERS) + encode_uint_var(1 << 40))
    assert talk.closed_with() == ErrorCode.H3_EXCESSIVE_LOAD


def test_an_endless_settings_frame_stops_at_the_window(talk: Conversation) -> None:
    control = talk.client.http._local_control_stream_id
    assert control is not None
    # SETTINGS may come once only, and an unknown type is discarded as it comes: MAX_PUSH_ID is what is waited for.
    talk.pair.client.send_stream_data(control, encode_uint_var(FrameType.MAX_PUSH_ID) + encode_uint_var(1 << 40))
    talk.pair.client.send_stream_data(control, bytes(4 * STREAM_WINDOW))
    talk.run(600)
    assert talk.server._held(control) <= STREAM_WINDOW


def test_webtransport_streams_are_refused(talk: Conversation) -> None:
    talk.raw_stream(encode_uint_var(FrameType.WEBTRANSPORT_STREAM) + encode_uint_var(0) + b"x")
    assert talk.closed_with() == ErrorCode.H3_EXCESSIVE_LOAD


def test_goaway_names_the_first_request_that_will_not_be_served(talk: Conversation) -> None:
    stream_id = talk.pair.client.get_next_available_stream_id()
    talk.client.http.send_headers(stream_id, GET, end_stream=True)
    talk.run()
    talk.server.send_goaway()
    talk.server.send_goaway()
    control = talk.server._local_control_stream_id
    assert control is not None
    unsent = bytes(talk.pair.server._streams[control].sender._buffer)
    assert unsent == encode_frame(FrameType.GOAWAY, encode_uint_var(stream_id + 4))


def test_a_broken_off_reply_is_a_reset_and_no_clean_end(talk: Conversation) -> None:
    stream_id = talk.pair.client.get_next_available_stream_id()
    talk.client.http.send_headers(stream_id, GET, end_stream=True)
    talk.run()
    talk.server.send_reply(stream_id, [(b":status", b"200")], b"part", ended=False)
    talk.run()
    talk.server.abort(stream_id, ErrorCode.H3_INTERNAL_ERROR)
    talk.run()
    resets = [each for each in talk.pair.client_events if isinstance(each, StreamReset)]
    assert [each.error_code for each in resets] == [ErrorCode.H3_INTERNAL_ERROR]


def test_body_bytes_handed_out_are_credited_only_when_consumed(talk: Conversation) -> None:
    stream_id = talk.pair.client.get_next_available_stream_id()
    talk.client.http.send_headers(stream_id, [(n, b"POST" if n == b":method" else v) for n, v in GET])
    talk.client.http.send_data(stream_id, bytes(2 * STREAM_WINDOW), end_stream=True)
    talk.run(300)
    received = sum(len(each.data) for each in talk.received if isinstance(each, DataReceived))
    assert received < 2 * STREAM_WINDOW
    consumed = 0
    while received > consumed:
        talk.pair.server.consume(stream_id, received - consumed)
        consumed = received
        talk.run(300)
        received = sum(len(each.data) for each in talk.received if isinstance(each, DataReceived))
    assert received == 2 * STREAM_WINDOW
