# SPDX-License-Identifier: Apache-2.0
"""The contract with aioquic's privates, and what our connection adds: windows, datagrams, first looks, certificates."""

from __future__ import annotations

import gc
import inspect
import random
import weakref
from pathlib import Path

import pytest
from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.quic.recovery import QuicPacketRecovery
from aioquic.quic.stream import QuicStream

from proxy.quic.configuration import CONNECTION_WINDOW, STREAM_WINDOW
from proxy.quic.connection import MAX_DATAGRAM_QUEUE
from proxy.quic.untaken import UNTAKEN_S
from tests.fakes.quic import CLIENT, SERVER, Pair

VERSIONS = [QuicProtocolVersion.VERSION_1]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_the_privates_we_override_are_what_they_were() -> None:
    """aioquic is pinned; this is what to look at first when the pin moves."""
    signature = inspect.signature
    assert list(signature(QuicConnection._write_stream_limits).parameters) == ["self", "builder", "space", "stream"]
    assert list(signature(QuicConnection._alpn_handler).parameters) == ["self", "alpn_protocol"]
    assert list(signature(QuicConnection.send_datagram_frame).parameters) == ["self", "data"]
    assert list(signature(Limit).parameters) == ["frame_type", "name", "value"]
    source = inspect.getsource(QuicConnection)
    for name in (
        "_local_max_data",
        "_datagrams_pending",
        "_remote_max_datagram_frame_size",
        "_on_max_stream_data_delivery",
    ):
        assert f"self.{name}" in source
    stream = QuicStream(stream_id=0)
    assert (stream.sender._buffer_start, stream.sender._buffer_stop, stream.sender._reset_error_code) == (0, 0, None)
    recovery = inspect.getsource(QuicPacketRecovery)
    assert "_rtt_smoothed" in recovery
    assert "_rtt_initialized" in recovery
    assert "_pto_count" in recovery
    assert "def bytes_in_flight" in recovery


def test_the_handshake_settles_on_an_alpn_and_measures_the_round_trip(pair: Pair) -> None:
    assert pair.negotiated == "h3"
    assert pair.server.established
    assert pair.server.round_trip_s is not None


def test_a_client_that_moves_counts_as_where_it_was_until_the_new_path_is_validated(pair: Pair) -> None:
    """It could write anybody's address on a packet, and trust goes by address."""
    assert pair.server.validated_address == CLIENT
    forged = ("10.0.0.1", 7)
    pair.client.send_ping(1)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, forged, pair.now)
    assert pair.server.get_peer_address() == forged
    assert pair.server.validated_address == CLIENT


def test_an_application_that_reads_nothing_stops_the_sender_at_the_window(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, bytes(4 * STREAM_WINDOW))
    pair.run(400)
    received = sum(len(each.data) for each in pair.server_events if isinstance(each, StreamDataReceived))
    assert received == STREAM_WINDOW


def test_streams_that_nobody_reads_never_keep_out_one_that_is_read(pair: Pair) -> None:
    for _ in range(2 * CONNECTION_WINDOW // STREAM_WINDOW):
        pair.client.send_stream_data(pair.client.get_next_available_stream_id(), bytes(2 * STREAM_WINDOW))
    pair.run(1500)
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, bytes(STREAM_WINDOW), end_stream=True)
    pair.run(200)
    received = [each for each in pair.server_events if isinstance(each, StreamDataReceived)]
    assert sum(len(each.data) for each in received if each.stream_id == stream_id) == STREAM_WINDOW


def test_what_is_remembered_of_a_stream_goes_with_it(pair: Pair) -> None:
    for _ in range(60):
        stream_id = pair.client.get_next_available_stream_id()
        pair.client.send_stream_data(stream_id, bytes(100))
        pair.run(2)
        pair.server.consume(stream_id, 50)
        pair.client.reset_stream(stream_id, 1)
        pair.server.stop_sending(stream_id, 1)
        pair.run(4)
    assert len(pair.server._consumed) < 10


def test_what_is_consumed_is_credited(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    size = 3 * CONNECTION_WINDOW // 2
    pair.client.send_stream_data(stream_id, bytes(size), end_stream=True)
    received = 0
    for _ in range(3000):
        pair.run(1)
        for event in pair.server_events:
            if isinstance(event, StreamDataReceived):
                received += len(event.data)
                pair.server.consume(event.stream_id, len(event.data))
        pair.server_events.clear()
        if received == size:
            break
    assert received == size


def test_a_sparse_stream_allocates_no_more_than_the_window(pair: Pair) -> None:
    """aioquic#589: raw 1.7.2 allocated 33 MB for six packets like these."""
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x")
    pair.run(2)
    sender = pair.client._streams[stream_id].sender
    for _ in range(6):
        far = pair.client._streams[stream_id].max_stream_data_remote - 1
        if far <= sender._buffer_stop:
            break
        sender._pending.subtract(0, far)
        sender._buffer += bytes(far - sender._buffer_stop)
        sender._buffer_stop = far
        pair.client.send_stream_data(stream_id, b"y")
        sender._pending.subtract(0, far)
        pair.run(2)
    held = len(pair.server._streams[stream_id].receiver._buffer)
    assert 0 < held <= STREAM_WINDOW


def test_datagrams_are_advertised_under_our_alpn_only(tmp_path: Path) -> None:
    assert Pair(tmp_path, alpn="h3").client._remote_max_datagram_frame_size is None
    assert Pair(tmp_path, alpn="inferlane/1").client._remote_max_datagram_frame_size == 65535
    assert Pair(tmp_path, alpn="inferlane/1", datagrams=False).client._remote_max_datagram_frame_size is None


def test_a_datagram_that_cannot_fit_blocks_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path, alpn="inferlane/1")
    assert 1000 < pair.server.datagram_capacity < 1200
    pair.server.send_datagram_frame(bytes(3000))
    pair.server.send_datagram_frame(b"small")
    pair.server.send_datagram_frame(bytes(pair.server.datagram_capacity))
    pair.run()
    got = [each.data for each in pair.client_events if isinstance(each, DatagramFrameReceived)]
    assert [len(each) for each in got] == [5, pair.server.datagram_capacity]
    assert pair.server.datagrams_dropped == 1


@pytest.mark.parametrize("cid_length", [4, 16, 20])
def test_a_full_datagram_fits_whatever_the_length_of_the_client_s_id(tmp_path: Path, cid_length: int) -> None:
    pair = Pair(tmp_path, alpn="inferlane/1", cid_length=cid_length)
    pair.server.send_datagram_frame(bytes(pair.server.datagram_capacity))
    pair.run()
    (got,) = [each.data for each in pair.client_events if isinstance(each, DatagramFrameReceived)]
    assert len(got) == pair.server.datagram_capacity


def test_a_client_that_takes_no_datagrams_gets_none(tmp_path: Path) -> None:
    pair = Pair(tmp_path, alpn="inferlane/1", client_datagrams=False)
    pair.server.send_datagram_frame(b"x")
    assert pair.server.datagram_capacity == 0
    assert pair.server.datagrams_dropped == 1


def test_a_full_datagram_queue_loses_its_oldest(tmp_path: Path) -> None:
    pair = Pair(tmp_path, alpn="inferlane/1")
    for number in range(MAX_DATAGRAM_QUEUE + 3):
        pair.server.send_datagram_frame(number.to_bytes(2, "big"))
    assert len(pair.server._datagrams_pending) == MAX_DATAGRAM_QUEUE
    assert pair.server._datagrams_pending[0] == (3).to_bytes(2, "big")


def test_writing_to_a_stream_that_the_client_stopped_does_nothing(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x")
    pair.run(2)
    pair.client.stop_stream(stream_id, 7)
    pair.run(2)
    pair.server.send_stream_data(stream_id, b"late", True)
    pair.server.stop_sending(stream_id, 1)
    pair.server.stop_receiving(stream_id, 1)
    assert pair.server.buffered(stream_id) == 0


def test_what_was_written_is_buffered_until_acknowledged(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x")
    pair.run(2)
    pair.server.send_stream_data(stream_id, bytes(500), True)
    assert pair.server.buffered(stream_id) == 500
    assert not pair.server.all_acknowledged
    pair.run()
    assert pair.server.buffered(stream_id) == 0
    assert pair.server.all_acknowledged


def test_an_answer_in_a_datagram_is_on_its_way_until_it_is_acknowledged(tmp_path: Path) -> None:
    """Else a goodbye would take its place while it waits to be sent, or come before it on a path that reorders."""
    pair = Pair(tmp_path, alpn="inferlane/1")
    assert pair.server.all_acknowledged
    pair.server.send_datagram_frame(b"an answer")
    assert not pair.server.all_acknowledged
    sent = pair.server.datagrams_to_send(pair.now)
    assert not pair.server.all_acknowledged
    for datagram, _ in sent:
        pair.client.receive_datagram(datagram, SERVER, pair.now)
    pair.run()
    assert pair.server.all_acknowledged


@pytest.mark.parametrize("step_s", [0.0001, 0.002, 0.05])
def test_a_connection_that_says_it_is_quiet_sends_nothing(tmp_path: Path, step_s: float) -> None:
    """Whatever either side does: Pair.run checks every round, at steps around the acknowledgement's delay."""
    pair, rng = Pair(tmp_path, alpn="inferlane/1", step_s=step_s), random.Random(7)
    deeds = [
        lambda: pair.client.send_stream_data(pair.client.get_next_available_stream_id(), b"x" * 500, end_stream=True),
        lambda: pair.client.send_datagram_frame(b"x"),
        lambda: pair.client.send_ping(1),
        lambda: pair.client.request_key_update(),
        lambda: pair.client.change_connection_id(),
        lambda: pair.server.send_datagram_frame(b"x"),
        lambda: [pair.server.send_stream_data(each, b"y" * 3000, True) for each in open_streams()],
        lambda: [pair.server.stop_sending(each, 1) for each in open_streams()[:1]],
        lambda: [pair.server.consume(each, 500) for each in open_streams()],
    ]

    def open_streams() -> list[int]:
        streams = pair.server._streams
        return [each for each in streams if each % 4 == 0 and streams[each].sender._buffer_fin is None]

    for _ in range(300):
        rng.choice(deeds)()
        pair.run(rng.randrange(1, 4))
    pair.run(200)
    assert pair.quiet_rounds > 100


def test_a_connection_that_has_ended_is_not_left_to_the_garbage_collector(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x")
    pair.run(4)
    pair.server.send_stream_data(stream_id, bytes(1 << 20))
    pair.client.close()
    pair.run(4)
    assert pair.server.ending
    pair.server.let_go()
    assert not any(each.sender._buffer for each in pair.server._streams.values())
    pair.now += 60
    pair.run(4)
    pair.server.let_go()
    gc.collect()
    gc.disable()
    try:
        left = weakref.ref(pair.server)
        del pair.server
        assert left() is None
    finally:
        gc.enable()


def test_a_reply_that_is_never_taken_is_broken_off_once_and_one_that_is_taken_never(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"?", end_stream=True)
    pair.run()
    pair.server.send_stream_data(stream_id, bytes(50_000), end_stream=True)
    assert pair.server.let_go_of_untaken(pair.now, 0x10C) == 0
    assert pair.server.let_go_of_untaken(pair.now + UNTAKEN_S - 1, 0x10C) == 0
    assert pair.server.let_go_of_untaken(pair.now + UNTAKEN_S, 0x10C) == 1
    assert pair.server.buffered(stream_id) == 0
    assert pair.server.let_go_of_untaken(pair.now + 3 * UNTAKEN_S, 0x10C) == 0
    taken = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(taken, b"?", end_stream=True)
    pair.run()
    pair.server.send_stream_data(taken, bytes(500), end_stream=True)
    pair.run()
    for _ in range(3):
        assert pair.server.let_go_of_untaken(pair.now + 4 * UNTAKEN_S, 0x10C) == 0
