# SPDX-License-Identifier: Apache-2.0
"""Ordinary packets are read the short way, all others by aioquic, and both come to the same."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketRecovery
from aioquic.tls import Epoch

from proxy.quic import frames
from proxy.quic.configuration import MOST_GAPS, STREAM_WINDOW
from proxy.quic.protection import seal_packet
from proxy.quic.recovery import MOST_UNHEARD
from proxy.quic.sending import ACK_DELAY_S
from tests.fakes.quic import CLIENT, Pair

REWRITTEN: list[Callable[..., Any]] = [
    QuicConnection.receive_datagram,
    QuicConnection._payload_received,
    QuicConnection._handle_stream_frame,
    QuicConnection._handle_ack_frame,
    QuicConnection._handle_datagram_frame,
    QuicConnection._handle_new_connection_id_frame,
    QuicConnection._initialize,
    QuicConnection.datagrams_to_send,
    QuicConnection._write_application,
    QuicConnection._write_connection_limits,
    QuicConnection._write_stream_frame,
    QuicConnection._write_ack_frame,
    QuicConnection._flush_builder,
    QuicConnection.get_timer,
    QuicConnection._idle_timeout,
    QuicPacketRecovery.on_ack_received,
    QuicPacketRecovery.on_packet_sent,
    QuicPacketRecovery.get_loss_detection_time,
]
DIGEST = "ff918a9015f6f3f796b3ea35963ce2c8a101ab6dcb13132f237df45da582592e"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, step_s=0.002)


def crafted(pair: Pair, payload: bytes) -> bytes:
    """A packet of the client's with these frames."""
    client = pair.client
    packet = seal_packet(
        client._cryptos[Epoch.ONE_RTT].send, 0x41, client._peer_cid.cid, client._packet_number, payload
    )
    client._packet_number += 1
    return packet


def test_what_we_wrote_again_is_what_it_was() -> None:
    """The functions whose short ways are ours. When a new release changes one, read the change, then set the digest."""
    source = "".join(inspect.getsource(each) for each in REWRITTEN)
    assert hashlib.sha256(source.encode()).hexdigest() == DIGEST


def test_ordinary_packets_take_the_short_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(QuicConnection, "receive_datagram", no)
    packet = crafted(pair, b"\x01\x0b\x00\x03abc\x00\x00")
    pair.server.receive_datagram(packet, CLIENT, pair.now)
    pair.take()
    (event,) = [each for each in pair.server_events if isinstance(each, StreamDataReceived) and each.stream_id == 0]
    assert (event.data, event.end_stream) == (b"abc", True)
    pair.server.receive_datagram(packet, CLIENT, pair.now)
    assert pair.server.next_event() is None, "a duplicate says nothing"


def test_a_fin_alone_ends_a_stream(pair: Pair) -> None:
    pair.server.receive_datagram(crafted(pair, b"\x0a\x00\x03abc"), CLIENT, pair.now)
    pair.take()
    pair.server.receive_datagram(crafted(pair, b"\x0f\x00\x03\x00"), CLIENT, pair.now)
    assert of_stream_0(pair) == [(b"abc", False), (b"", True)]


def of_stream_0(pair: Pair) -> list[tuple[bytes, bool]]:
    pair.take()
    events = [each for each in pair.server_events if isinstance(each, StreamDataReceived) and each.stream_id == 0]
    return [(each.data, each.end_stream) for each in events]


def test_what_came_of_a_stream_since_events_were_taken_is_one_event(pair: Pair) -> None:
    """A burst of a long body would else be a walk through the gateway for each packet."""
    for payload in (b"\x0a\x00\x03abc", b"\x0a\x04\x03xyz", b"\x0e\x00\x03\x03def", b"\x0f\x00\x06\x03ghi"):
        pair.server.receive_datagram(crafted(pair, payload), CLIENT, pair.now)
    assert of_stream_0(pair) == [(b"abcdefghi", True)]
    assert [each.data for each in pair.server_events[-1:]] == [b"xyz"]  # type: ignore[attr-defined]


def test_bytes_that_aioquic_hands_out_stay_behind_those_before_them(pair: Pair) -> None:
    """The second packet came late, so aioquic's own code takes it and the third together."""
    late = crafted(pair, b"\x0e\x00\x03\x03def")
    for packet in (
        crafted(pair, b"\x0a\x00\x03abc"),
        crafted(pair, b"\x0e\x00\x06\x03ghi"),
        late,
        crafted(pair, b"\x0f\x00\x09\x03jkl"),
    ):
        pair.server.receive_datagram(packet, CLIENT, pair.now)
    got = of_stream_0(pair)
    assert b"".join(data for data, _ in got) == b"abcdefghijkl"
    assert [ended for _, ended in got] == [False] * (len(got) - 1) + [True]


def test_packet_numbers_are_remembered_as_aioquic_remembers_them(pair: Pair) -> None:
    """In order, with gaps, late and doubled."""
    space = pair.server._spaces[Epoch.ONE_RTT]
    first = pair.client._packet_number
    packets = [crafted(pair, b"\x01\x00\x00") for _ in range(400)]
    order = [*range(40), *range(41, 60), 40, 40, 59, *range(60, 300, 2), 61, *range(300, 400)]
    theirs = RangeSet(iter(space.ack_queue))
    for index in order:
        pair.server.receive_datagram(packets[index], CLIENT, pair.now)
        theirs.add(first + index)
        while len(theirs) > MAX_ACK_RANGES:
            theirs.shift()
    assert space.ack_queue == theirs
    assert space.largest_received_packet == first + 399


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", QuicErrorCode.PROTOCOL_VIOLATION),
        (b"\x01\x0a\x00\x09abc", QuicErrorCode.FRAME_ENCODING_ERROR),
        (b"\x02\x00\x00\x00\x05", QuicErrorCode.FRAME_ENCODING_ERROR),
        (b"\x01\x40", QuicErrorCode.FRAME_ENCODING_ERROR),
        (b"\x0e\x00\x80\x10\x00\x00\x03abc", QuicErrorCode.FLOW_CONTROL_ERROR),
        (b"\x0a\x44\x00\x03abc", QuicErrorCode.STREAM_LIMIT_ERROR),
        (b"\x0a\x01\x03abc", QuicErrorCode.STREAM_STATE_ERROR),
        (b"\x31\x02ab", QuicErrorCode.PROTOCOL_VIOLATION),
        (b"\x0b\x00\x03abc\x0a\x00\x05abcde", QuicErrorCode.FINAL_SIZE_ERROR),
        (b"\x02\x7f\xff\x00\x00\x00", QuicErrorCode.PROTOCOL_VIOLATION),
        (b"\x03\x7f\xff\x00\x00\x00\x00\x00\x00", QuicErrorCode.PROTOCOL_VIOLATION),
    ],
)
def test_a_fault_is_named_as_aioquic_names_it(pair: Pair, payload: bytes, code: QuicErrorCode) -> None:
    padded = payload + bytes(4 - len(payload)) if payload[:1] in (b"\x0a", b"\x0e") and len(payload) < 4 else payload
    datagram = crafted(pair, padded) if padded else crafted_empty(pair)
    pair.server.receive_datagram(datagram, CLIENT, pair.now)
    assert pair.server._close_event is not None
    assert pair.server._close_event.error_code == code
    assert len(pair.server.datagrams_to_send(pair.now)) == 1
    assert pair.server.ending


def crafted_empty(pair: Pair) -> bytes:
    """A packet number of four bytes, which leaves enough to sample without a frame."""
    client = pair.client
    keys, number = client._cryptos[Epoch.ONE_RTT].send, client._packet_number
    return keys.encrypt_packet(b"\x43" + client._peer_cid.cid + number.to_bytes(4, "big"), b"", number)


def test_a_key_update_of_the_client_goes_the_long_way_and_then_the_short_one(pair: Pair) -> None:
    pair.client.request_key_update()
    for text in (b"a", b"b", b"c"):
        stream_id = pair.client.get_next_available_stream_id()
        pair.client.send_stream_data(stream_id, text, end_stream=True)
        pair.run(4)
        pair.server.send_stream_data(stream_id, text, True)
        pair.run(4)
    got = [each.data for each in pair.client_events if isinstance(each, StreamDataReceived) and each.stream_id % 4 == 0]
    assert got == [b"a", b"b", b"c"]
    assert pair.server._cryptos[Epoch.ONE_RTT].recv.key_phase == 1


def test_a_client_that_moves_goes_on_from_its_new_address(pair: Pair) -> None:
    moved = ("192.0.2.9", 40001)
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x", end_stream=True)
    for _ in range(20):
        pair.now += 0.002
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            pair.server.receive_datagram(datagram, moved, pair.now)
        pair.take()
        for datagram, address in pair.server.datagrams_to_send(pair.now):
            if address == moved:
                pair.client.receive_datagram(datagram, ("192.0.2.2", 4433), pair.now)
    assert pair.server.validated_address == moved
    assert pair.server.get_peer_address() == moved


def test_a_datagram_of_the_application_is_taken(tmp_path: Path) -> None:
    pair = Pair(tmp_path, alpn="inferlane/1", step_s=0.002)
    pair.server.receive_datagram(crafted(pair, b"\x31\x02ab\x30cd"), CLIENT, pair.now)
    pair.take()
    assert [each.data for each in pair.server_events if isinstance(each, DatagramFrameReceived)] == [b"ab", b"cd"]


def test_who_acknowledges_nothing_makes_no_memory_grow(pair: Pair) -> None:
    """What we send in answer to PINGs is acknowledgements, and nobody acknowledges those unasked."""
    space = pair.server._spaces[Epoch.ONE_RTT]
    for payload in (b"\x01\x00\x00", b"\x01\x10\x00"):  # the short way, and aioquic's
        for _ in range(2 * MOST_UNHEARD):
            pair.now += 2 * ACK_DELAY_S
            pair.server.receive_datagram(crafted(pair, payload), CLIENT, pair.now)
            assert pair.server.datagrams_to_send(pair.now + ACK_DELAY_S)
        assert len(space.sent_packets) <= MOST_UNHEARD + 8
    pair.client.send_ping(7)
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x", end_stream=True)
    pair.run(4)
    pair.server.send_stream_data(stream_id, b"y", True)
    pair.run(4)
    assert pair.server.all_acknowledged
    assert not space.sent_packets


def test_a_stream_in_crumbs_ends_the_connection(pair: Pair) -> None:
    """aioquic walks all ranges for each piece that comes out of order: 118 KB of single bytes took it 11 s."""
    frame = [b"\x0e\x00" + frames.varint(2 * each + 1) + b"\x01a" for each in range(MOST_GAPS + 1)]
    for each in frame[:-1]:
        pair.server.receive_datagram(crafted(pair, each), CLIENT, pair.now)
    assert pair.server._close_event is None
    pair.server.receive_datagram(crafted(pair, frame[-1]), CLIENT, pair.now)
    assert pair.server._close_event is not None
    assert pair.server._close_event.error_code == QuicErrorCode.INTERNAL_ERROR


def test_a_stream_whose_packets_come_in_the_worst_order_is_whole_in_the_end(pair: Pair) -> None:
    """A window of full packets has less than half as many gaps as are allowed."""
    size = STREAM_WINDOW // 1100
    order = [*range(1, size, 2), *range(0, size, 2)]
    for each in order:
        payload = b"\x0e\x00" + frames.varint(1100 * each) + frames.varint(1100) + bytes([each % 251]) * 1100
        pair.server.receive_datagram(crafted(pair, payload), CLIENT, pair.now)
    pair.take()
    got = b"".join(each.data for each in pair.server_events if isinstance(each, StreamDataReceived))
    assert got == b"".join(bytes([each % 251]) * 1100 for each in range(size))
    assert size // 2 < MOST_GAPS // 2


@pytest.mark.parametrize("before", [b"", b"\x10\x00"])
def test_padding_between_frames_costs_what_it_is_long(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    """aioquic copies the rest of the packet at each run of zeros, and a datagram on loopback has 64 KiB."""
    looked: list[int] = []
    after_padding = frames.after_padding

    def counted(plain: bytes, at: int) -> int:
        looked.append(len(plain) if before else 0)
        return after_padding(plain, at)

    monkeypatch.setattr(frames, "after_padding", counted)
    pair.server.receive_datagram(crafted(pair, before + b"\x00\x01" * 20_000), CLIENT, pair.now)
    assert len(looked) == 20_000
    assert sum(looked) <= 20_000 * frames.LOOK_AHEAD
