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
from aioquic.quic.recovery import QuicPacketRecovery
from aioquic.tls import Epoch

from proxy.quic.protection import seal_packet
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
    pair.server.receive_datagram(crafted(pair, b"\x0f\x00\x03\x00"), CLIENT, pair.now)
    pair.take()
    events = [each for each in pair.server_events if isinstance(each, StreamDataReceived) and each.stream_id == 0]
    assert [(each.data, each.end_stream) for each in events] == [(b"abc", False), (b"", True)]


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
