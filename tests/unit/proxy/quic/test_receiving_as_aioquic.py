# SPDX-License-Identifier: Apache-2.0
"""Whatever frames a client puts into its packets, the short way and aioquic's own leave the same connection behind."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from aioquic.quic.events import QuicEvent, StreamDataReceived, StreamReset
from aioquic.tls import Epoch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.certificate import development_certificate
from proxy.quic.connection import Connection
from proxy.quic.frames import varint
from proxy.quic.protection import seal_packet
from tests.fakes.quic import CLIENT, Pair

SENT = 10
"""Packets of the server that a client may acknowledge."""
HARMLESS = (
    *(b"\x00", bytes(7), b"\x01", b"\x40\x01", b"\x10\x7f\xff", b"\x12\x40\xc8", b"\x14\x00", b"\x16\x00"),
    *(b"\x19\x01", b"\x1a" + bytes(8), b"\x1b" + bytes(8), b"\x06\x00\x00"),
)
FATAL = (b"\x31\x02ab", b"\x21", b"\x1e", b"\x08", b"\x02\x05\x00\x00\x09", b"\x18\x09\x00\x08" + bytes(24))


class Writer:
    """A client's frames: most streams go on where they are, some do not, and few are nonsense."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._stopped: dict[int, int] = {}

    def packet(self, *, last: bool) -> bytes:
        frames = [self._frame() for _ in range(self._random.randint(1, 4))]
        if last and self._random.random() < 0.7:
            frames.append(self._random.choice(FATAL) if self._random.random() < 0.3 else self._stream(odd=True))
        return b"".join(frames).ljust(3, b"\x00")

    def skipped(self) -> int:
        return self._random.choice([0, 0, 0, 1, 2])

    def _frame(self) -> bytes:
        chosen = self._random.random()
        if chosen < 0.6:
            return self._stream(odd=chosen < 0.1)
        if chosen < 0.75:
            top = self._random.randrange(SENT)
            return b"\x02%c\x00\x00%c" % (top, self._random.randint(0, top))
        if chosen < 0.85:
            stream_id, rest = self._random.choice([0, 4, 2]), self._random.choice([b"\x00", b"\x80\x10\x00\x00"])
            return (b"\x11" if stream_id % 4 == 0 else b"\x15") + varint(stream_id) + rest
        return self._random.choice(HARMLESS)

    def _stream(self, *, odd: bool) -> bytes:
        random = self._random
        stream_id, size = random.choice([0, 4, 8, 2]), random.choice([0, 3, 60])
        offset = self._stopped.get(stream_id, 0)
        self._stopped[stream_id] = offset + size
        if odd:
            stream_id = random.choice([0, 4, 8, 2, 3, 1, 508, 512])
            offset = random.choice([0, 1, 3, offset + 3, offset + 3, 262_140, 300_000])
            if random.random() < 0.3:
                return b"\x04" + varint(stream_id) + b"\x09" + varint(offset)
            if random.random() < 0.2:
                return b"\x05" + varint(stream_id) + b"\x09"
        kind = 0x0E | (random.random() < 0.25)
        return bytes([kind]) + varint(stream_id) + varint(offset) + varint(size) + bytes([stream_id % 251]) * size


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One certificate for all pairs."""
    folder = tmp_path_factory.mktemp("state")
    development_certificate(folder)
    return folder


@settings(max_examples=60, deadline=None, derandomize=True)
@example(seed=359220837, packets=3, alpn="h3")  # one packet ends a stream and then goes on beyond that end
@example(seed=149283140, packets=3, alpn="h3")
@given(seed=st.integers(0, 1 << 30), packets=st.integers(1, 8), alpn=st.sampled_from(["h3", "inferlane/1"]))
def test_both_ways_leave_the_same_connection(state_dir: Path, seed: int, packets: int, alpn: str) -> None:
    short, long = (Pair(state_dir, alpn=alpn, step_s=0.002) for _ in range(2))
    long.server._short_keys = long.server._short_space = None
    for pair in (short, long):
        pair.server_events.clear()
        pair.server._packet_number = SENT
    writer = Writer(seed)
    for left_over in reversed(range(packets)):
        payload, skipped = writer.packet(last=left_over == 0), writer.skipped()
        for pair in (short, long):
            pair.client._packet_number += skipped
            packet = crafted(pair, payload)
            for _ in range(2):  # the second is a duplicate, and changes nothing
                pair.server.receive_datagram(packet, CLIENT, pair.now)
            pair.take()
        assert what_came(short.server_events) == what_came(long.server_events)
        assert what_is(short.server) == what_is(long.server)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 30), short=st.booleans())
def test_what_comes_late_of_a_stream_that_is_over_ends_no_connection(state_dir: Path, seed: int, short: bool) -> None:
    """In a network that loses, copies and reorders, all of it comes from clients that do nothing wrong."""
    pair, random = Pair(state_dir, step_s=0.002), Random(seed)
    server = pair.server
    if not short:
        server._short_keys = server._short_space = None
    pair.server_events.clear()
    sizes = {stream_id: random.choice([0, 1, 60, 400]) for stream_id in (0, 4, 2, 6)}
    reset = {stream_id for stream_id in sizes if random.random() < 0.3}
    frames = [
        each for stream_id, size in sizes.items() for each in said_of(stream_id, size, stream_id in reset, random)
    ]
    random.shuffle(frames)
    packets = []
    while frames:
        count = random.randint(1, 3)
        packets.append(crafted(pair, b"".join(frames[:count]).ljust(3, b"\x00")))
        del frames[:count]
    random.shuffle(packets)
    for packet in packets + packets[: len(packets) // 2]:
        server.receive_datagram(packet, CLIENT, pair.now)
        if random.random() < 0.5:
            serve(pair)
    serve(pair)
    streams, _ = what_came(pair.server_events)
    assert server._close_event is None and not server.ending
    for stream_id in sizes.keys() - reset:
        assert streams[stream_id] == (content(stream_id, sizes[stream_id]), True)
    server._look_at_streams()
    assert not server._streams
    assert (server._received.used, server._received.missing) == (sum(sizes.values()), 0)


def said_of(stream_id: int, size: int, reset: bool, random: Random) -> list[bytes]:
    """All of a stream, some of it more than once and cut in other ways, and its end."""
    whole, number = content(stream_id, size), varint(stream_id)
    frames = []
    for _ in range(random.randint(1, 3)):
        cuts = sorted({0, size, *(random.randint(0, size) for _ in range(random.randint(0, 3)))})
        for begin, end in zip(cuts, cuts[1:] or [size], strict=False):
            kind = 0x0E | (end == size and not reset)
            frames.append(bytes([kind]) + number + varint(begin) + varint(end - begin) + whole[begin:end])
        frames += [b"\x04" + number + b"\x09" + varint(size)] * reset
        frames += [b"\x15" + number + varint(size)]
        if stream_id % 4 == 0:
            frames += [b"\x11" + number + varint(1 << 20)] + [b"\x05" + number + b"\x09"] * (random.random() < 0.2)
    return frames


def serve(pair: Pair) -> None:
    """Answer what is whole, and acknowledge all that the server says."""
    server = pair.server
    pair.take()
    for event in pair.server_events:
        if not isinstance(event, StreamReset) and not (isinstance(event, StreamDataReceived) and event.end_stream):
            continue
        if event.stream_id % 4 == 0 and not server.replied(event.stream_id):
            server.send_stream_data(event.stream_id, b"answer", end_stream=True)
    for _ in range(2):
        pair.now += 0.002
        server.datagrams_to_send(pair.now)
        top = varint(server._packet_number - 1)
        server.receive_datagram(crafted(pair, b"\x02" + top + b"\x00\x00" + top), CLIENT, pair.now)
    pair.take()


def content(stream_id: int, size: int) -> bytes:
    """What a client says on a stream."""
    return Random(stream_id).randbytes(size)


def crafted(pair: Pair, payload: bytes) -> bytes:
    """A packet of the client's with these frames."""
    client = pair.client
    packet = seal_packet(
        client._cryptos[Epoch.ONE_RTT].send, 0x41, client._peer_cid.cid, client._packet_number, payload
    )
    client._packet_number += 1
    return packet


def what_came(events: list[QuicEvent]) -> tuple[dict[int, tuple[bytes, bool]], list[tuple[str, dict[str, Any]]]]:
    """What came of each stream, in however many pieces, and everything else in its order."""
    streams: dict[int, tuple[bytes, bool]] = {}
    others = []
    for event in events:
        if isinstance(event, StreamDataReceived):
            streams[event.stream_id] = (streams.get(event.stream_id, (b"",))[0] + event.data, event.end_stream)
        elif "ConnectionId" not in type(event).__name__:  # those are random
            others.append((type(event).__name__, vars(event)))
    return streams, others


def what_is(server: Connection) -> tuple[Any, ...]:
    """What a packet changes."""
    close = server._close_event
    if close is not None:
        return close.error_code, close.frame_type
    server._look_at_streams()  # the long way leaves those that are over until something is sent
    space, limits = server._spaces[Epoch.ONE_RTT], (server._local_max_streams_bidi, server._local_max_streams_uni)
    receivers = {each: vars(stream.receiver) for each, stream in server._streams.items()}
    return (
        {each: (it["highest_offset"], it["_final_size"], it["is_finished"]) for each, it in receivers.items()},
        [(limit.used, limit.value) for limit in limits],
        (server._local_max_data.used, server._remote_max_data),
        (list(space.ack_queue), space.expected_packet_number, space.largest_received_packet, space.ack_at),
        server._peer_cid_sequence_numbers,
    )
