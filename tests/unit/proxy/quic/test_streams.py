# SPDX-License-Identifier: Apache-2.0
"""Streams are marked when they have something to say, and go when they are over."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from aioquic.quic.connection import Limit, QuicConnection
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.configuration import CONNECTION_WINDOW
from proxy.quic.streams import ReceivedLimit, StreamKeeper
from tests.fakes.quic import Pair

ACKED, LOST = QuicDeliveryState.ACKED, QuicDeliveryState.LOST


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, step_s=0.002)


def asked(pair: Pair) -> QuicStream:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x", end_stream=True)
    pair.run(2)
    return pair.server._streams[stream_id]


def test_the_window_follows_what_came_by_half_windows() -> None:
    limit = ReceivedLimit(1000)
    assert limit.value == 1000
    limit.used = 499
    assert limit.value == 1000
    limit.used = 500
    assert limit.value == 1500
    limit.value *= 2
    assert limit.value == 1500
    assert isinstance(limit, Limit)


def test_what_is_reset_is_not_kept_for_a_client_that_acknowledges_nothing(pair: Pair) -> None:
    stream = asked(pair)
    pair.server.send_stream_data(0, bytes(100_000))
    pair.run(2)
    assert pair.server.buffered(0) > 0
    pair.server.reset_stream(0, 1)
    assert pair.server.buffered(0) == len(stream.sender._buffer) == 0
    pair.run(20)
    assert 0 not in pair.server._streams  # the client has acknowledged it


def far_ahead(pair: Pair, stream_id: int, offset: int) -> None:
    """One byte there, and none before it."""
    pair.client.send_stream_data(stream_id, b"x")
    pair.run(2)
    sender = pair.client._streams[stream_id].sender
    sender._buffer += bytes(offset - sender._buffer_stop)
    sender._buffer_stop = offset
    pair.client.send_stream_data(stream_id, b"y")
    pair.run(2)


def test_bytes_behind_gaps_take_no_more_than_the_connection_s_window(pair: Pair) -> None:
    """Each of these packets makes the server allocate 200,000 bytes: 25 MB in all, without the bound."""
    for _ in range(120):
        far_ahead(pair, pair.client.get_next_available_stream_id(), 200_000)
    held = sum(len(each.receiver._buffer) for each in pair.server._streams.values())
    assert CONNECTION_WINDOW // 2 < held <= CONNECTION_WINDOW


@pytest.mark.parametrize("how", ["filled", "reset"])
def test_a_gap_that_closes_gives_the_window_back(pair: Pair, how: str) -> None:
    for _ in range(3):
        stream_id = pair.client.get_next_available_stream_id()
        far_ahead(pair, stream_id, 200_000)
        assert pair.server._received.missing == 200_000
        if how == "filled":
            sender = pair.client._streams[stream_id].sender
            sender._pending.add(1, 200_000)
            sender.buffer_is_empty = False
            pair.run(400)
        else:
            pair.client.reset_stream(stream_id, 0)
            pair.run(4)
        assert pair.server._received.missing == 0
    assert pair.server._received.value >= 3 * 200_000 + CONNECTION_WINDOW // 2


def test_a_stream_is_marked_by_writing_resetting_and_consuming(pair: Pair) -> None:
    stream = asked(pair)
    assert not pair.server._due
    assert stream.stream_id is not None
    pair.server.send_stream_data(stream.stream_id, b"y")
    assert stream in pair.server._due
    pair.run(4)
    assert not pair.server._due
    pair.server.stop_sending(stream.stream_id, 1)
    assert not pair.server.quiet(pair.now)
    pair.run(8)
    assert stream.stream_id not in pair.server._streams


def test_finished_streams_go_and_let_the_client_open_others(pair: Pair) -> None:
    limit = pair.server._local_max_streams_bidi
    for _ in range(5):
        stream = asked(pair)
        pair.server.send_stream_data(stream.stream_id or 0, b"y", True)
        pair.run(4)
    assert limit.value == 128 + 5
    assert not [each for each in pair.server._streams if each % 4 == 0]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40), st.integers(0, 10))
def test_deliveries_in_any_order_leave_a_sender_as_aioquic_does(order: list[tuple[int, bool]], size: int) -> None:
    """Each frame is acknowledged or lost once; what is lost is sent again as it was."""
    ours, theirs = QuicStream(stream_id=0), QuicStream(stream_id=0)
    for stream in (ours, theirs):
        stream.sender.write(bytes(range(size)), end_stream=True)
    frames = {at: (at, at + 1, at + 1 == size) for at in range(size)}
    for each in frames.values():
        for stream in (ours, theirs):
            stream.sender._pending.subtract(each[0], each[1])
    keeper = Keeper()
    for at, arrived in order:
        if at in frames:
            state = ACKED if arrived else LOST
            StreamKeeper._on_stream_delivery(keeper, state, ours, *frames[at])  # type: ignore[arg-type]
            theirs.sender.on_data_delivery(state, *frames[at])
            if arrived:
                del frames[at]
        assert sender_state(ours) == sender_state(theirs)


def sender_state(stream: QuicStream) -> tuple[object, ...]:
    sender = stream.sender
    return (
        bytes(sender._buffer),
        sender._buffer_start,
        sender.is_finished,
        sender.buffer_is_empty,
        list(sender._acked),
        list(sender._pending),
    )


class Keeper:
    """As much of a connection as a delivery touches."""

    def __init__(self) -> None:
        self._due: dict[QuicStream, None] = {}

    def _discard(self, stream: QuicStream) -> None:
        raise AssertionError("the client has not finished")


def test_the_privates_we_use_are_what_they_were() -> None:
    assert set(vars(QuicStreamSender(0, writable=True))) == {
        "buffer_is_empty", "highest_offset", "is_finished", "reset_pending", "_acked", "_acked_fin", "_buffer",
        "_buffer_fin", "_buffer_start", "_buffer_stop", "_pending", "_pending_eof", "_reset_error_code", "_stream_id",
    }  # fmt: skip
    assert set(vars(QuicStreamReceiver(0, readable=True))) == {
        "highest_offset", "is_finished", "stop_pending", "_buffer", "_buffer_start", "_final_size", "_ranges",
        "_stream_id", "_stop_error_code",
    }  # fmt: skip
    assert list(inspect.signature(QuicConnection._on_max_stream_data_delivery).parameters) == [
        "self", "delivery", "stream",
    ]  # fmt: skip
    assert list(inspect.signature(QuicConnection._stream_limit).parameters) == ["self", "stream_id"]
