# SPDX-License-Identifier: Apache-2.0
"""Long replies leave in full packets, stream by stream in turns, and never beyond what pacing and windows allow."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import Epoch

from proxy.quic import frames
from proxy.quic.protection import open_packet
from tests.fakes.quic import SERVER, Pair

LONG = 100_000


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, step_s=0.002)


def asked(pair: Pair, count: int) -> list[int]:
    """So many requests, all here."""
    streams = []
    for _ in range(count):
        streams.append(pair.client.get_next_available_stream_id())
        pair.client.send_stream_data(streams[-1], b"ask", end_stream=True)
    pair.run(10)
    return streams


def widen(pair: Pair, packets: int) -> None:
    """Room for so many packets in the congestion window, and none of it kept back by the pacer."""
    control = pair.server._recovery._cc
    control.congestion_window = control.bytes_in_flight + packets * 1200
    pair.server._recovery.pacer.packet_time = None


def flushed(pair: Pair) -> list[list[int]]:
    """What one flush sends: of each packet, the streams that it has bytes of."""
    keys, end = pair.client._cryptos[Epoch.ONE_RTT].recv, 1 + len(pair.client.host_cid)
    packets = []
    for datagram, _ in pair.server.datagrams_to_send(pair.now):
        opened = open_packet(keys, datagram, end, pair.server._packet_number)
        assert opened is not None
        packets.append(streams_of(opened[2]))
        pair.client.receive_datagram(datagram, SERVER, pair.now)
    pair.take()
    return packets


def streams_of(plain: bytes) -> list[int]:
    at, found = 0, []
    while at < len(plain):
        if plain[at] & 0xF8 == frames.STREAM:
            frame = frames.read_stream(plain, at)
            assert frame is not None
            found.append(frame[0])
            at = frame[3]
        elif plain[at] == frames.ACK:
            ack = frames.read_ack(plain, at)
            assert ack is not None
            at = ack[2]
        else:
            assert plain[at] in (frames.MAX_DATA, frames.MAX_STREAM_DATA, 0x12, 0x13), "a frame that nobody expects"
            _, at = frames.read_varint(plain, at + 1)
    return found


def test_streams_take_turns_packet_by_packet(pair: Pair) -> None:
    streams = asked(pair, 3)
    for stream_id in streams:
        pair.server.send_stream_data(stream_id, bytes(LONG), True)
    widen(pair, 12)
    packets = flushed(pair)
    assert len(packets) == 12
    assert [each[-1] for each in packets] == streams * 4


def test_a_stream_that_waits_for_room_goes_before_one_that_has_just_sent(pair: Pair) -> None:
    first, second = asked(pair, 2)
    for stream_id in (first, second):
        pair.server.send_stream_data(stream_id, bytes(LONG))
    turns = []
    for _ in range(4):
        widen(pair, 1)
        turns += flushed(pair)
    assert turns == [[first], [second], [first], [second]]


def test_a_stream_with_nothing_to_say_is_behind_those_that_talk(pair: Pair) -> None:
    """It was first to ask, and its turn comes when it has something to say and those before it have had theirs."""
    silent, first, second = asked(pair, 3)
    for stream_id in (first, second):
        pair.server.send_stream_data(stream_id, bytes(LONG))
    widen(pair, 3)
    assert flushed(pair) == [[first], [second], [first]]
    pair.server.send_stream_data(silent, b"token")
    widen(pair, 3)
    assert flushed(pair) == [[second], [first], [silent, second]]


def test_a_long_reply_goes_in_full_packets_and_its_end_in_a_shorter_one(pair: Pair) -> None:
    (stream_id,) = asked(pair, 1)
    pair.server.send_stream_data(stream_id, bytes(LONG), True)
    widen(pair, 1000)
    sizes = [len(datagram) for datagram, _ in pair.server.datagrams_to_send(pair.now)]
    assert LONG < sum(sizes) < 1.04 * LONG
    assert set(sizes[:-1]) == {1200}, "a train needs equal packets"
    assert sizes[-1] < 1200


@pytest.mark.parametrize(("limit", "of_stream"), [(5000, True), (60_000, True), (5000, False), (60_000, False)])
def test_the_client_s_windows_hold_within_a_burst(pair: Pair, limit: int, of_stream: bool) -> None:
    first, second = asked(pair, 2)
    server, stream = pair.server, pair.server._streams[first]
    if of_stream:
        stream.max_stream_data_remote = limit
    else:
        server._remote_max_data = server._remote_max_data_used + limit
    for stream_id in (first, second):
        server.send_stream_data(stream_id, bytes(LONG), True)
    widen(pair, 1000)
    used = server._remote_max_data_used
    server.datagrams_to_send(pair.now)
    if of_stream:
        assert stream.sender.highest_offset == limit
        assert server._streams[second].sender.highest_offset == LONG
    else:
        assert server._remote_max_data_used - used == limit


def test_the_pacer_s_allowance_holds(pair: Pair) -> None:
    (stream_id,) = asked(pair, 1)
    pair.server.send_stream_data(stream_id, bytes(10 * LONG))
    widen(pair, 1000)
    pacer = pair.server._recovery.pacer
    pacer.packet_time, pacer.bucket_time, pacer.evaluation_time = 0.0001, 0.00095, pair.now
    assert len(flushed(pair)) == 10
    assert pair.server._pacing_at == pytest.approx(pair.now + 0.0001)
    assert not pair.server.datagrams_to_send(pair.now)


def test_what_is_in_flight_is_counted_as_it_was_packet_by_packet(pair: Pair) -> None:
    (stream_id,) = asked(pair, 1)
    server = pair.server
    pair.server.send_stream_data(stream_id, bytes(LONG))
    widen(pair, 20)
    path, space = server._network_paths[0], server._spaces[Epoch.ONE_RTT]
    before, in_flight = path.bytes_sent, server._recovery._cc.bytes_in_flight
    sent = server.datagrams_to_send(pair.now)
    total = sum(len(datagram) for datagram, _ in sent)
    assert (len(sent), path.bytes_sent - before, server._recovery._cc.bytes_in_flight - in_flight) == (20, total, total)
    assert space.ack_eliciting_in_flight == len([each for each in space.sent_packets.values() if each.is_ack_eliciting])
    assert sum(each.sent_bytes for each in space.sent_packets.values() if each.in_flight) >= total


def test_replies_in_any_order_all_arrive_and_their_streams_are_let_go(pair: Pair) -> None:
    rng = random.Random(3)
    streams = asked(pair, 100)
    rng.shuffle(streams)
    sizes = {stream_id: rng.randrange(1, 5000) for stream_id in streams}
    for stream_id in streams:
        pair.server.send_stream_data(stream_id, bytes(sizes[stream_id]), end_stream=True)
        if rng.random() < 0.5:
            pair.run(rng.randrange(1, 4))
    pair.run(200)
    assert pair.server.all_acknowledged
    assert not set(streams) & set(pair.server._streams)
    got = dict.fromkeys(streams, 0)
    for event in pair.client_events:
        if isinstance(event, StreamDataReceived) and event.stream_id in got:
            got[event.stream_id] += len(event.data)
    assert got == sizes


def test_a_reset_is_told_though_there_is_nothing_else_to_say(pair: Pair) -> None:
    stream_id, _ = asked(pair, 2)
    pair.server.stop_sending(stream_id, 7)
    pair.run(4)
    assert stream_id not in pair.client._streams or pair.client._streams[stream_id].receiver.is_finished


def test_the_privates_we_use_are_what_they_were() -> None:
    ranges = RangeSet([range(3, 5)])
    assert ranges._RangeSet__ranges == [range(3, 5)]  # type: ignore[attr-defined]
    ranges.subtract(3, 4)
    assert ranges._RangeSet__ranges == list(ranges) == [range(4, 5)]  # type: ignore[attr-defined]
