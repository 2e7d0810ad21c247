# SPDX-License-Identifier: Apache-2.0
"""Many open streams on one connection: those whose reply is not here yet cost nothing, and each gets its turn."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import pytest
from aioquic.quic.connection import QuicConnection

from tests.fakes.quic import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def asked(pair: Pair, count: int) -> list[int]:
    """So many requests, all here."""
    streams = []
    for _ in range(count):
        streams.append(pair.client.get_next_available_stream_id())
        pair.client.send_stream_data(streams[-1], b"ask", end_stream=True)
    pair.run(10)
    return streams


def queue(pair: Pair, streams: list[int]) -> list[int | None]:
    return [each.stream_id for each in pair.server._streams_queue if each.stream_id in streams]


def test_the_privates_that_turns_are_made_of_are_what_they_were() -> None:
    parameters = list(inspect.signature(QuicConnection._write_application).parameters)
    assert parameters == ["self", "builder", "network_path", "now"]
    source = inspect.getsource(QuicConnection._write_application)
    assert "for stream in self._streams_queue:" in source
    assert "self._streams_queue.extend(sent)" in source


def test_replies_in_any_order_all_arrive_and_their_streams_are_let_go(pair: Pair) -> None:
    rng = random.Random(3)
    streams = asked(pair, 100)
    rng.shuffle(streams)
    for stream_id in streams:
        pair.server.send_stream_data(stream_id, bytes(rng.randrange(1, 5000)), end_stream=True)
        if rng.random() < 0.5:
            pair.run(rng.randrange(1, 4))
    pair.run(200)
    assert pair.server.all_acknowledged
    pair.server.datagrams_to_send(pair.now)
    assert queue(pair, streams) == []
    assert not set(streams) & set(pair.server._streams)


def test_a_stream_with_nothing_to_say_is_behind_those_that_talk(pair: Pair) -> None:
    first, second, third = asked(pair, 3)
    pair.server.send_stream_data(second, b"token")
    pair.run(2)
    assert queue(pair, [first, second, third]) == [second, first, third]


def test_a_stream_that_waits_for_room_goes_before_one_that_has_just_sent(pair: Pair) -> None:
    streams = asked(pair, 3)
    for stream_id in streams[:2]:
        pair.server.send_stream_data(stream_id, bytes(100_000))
    pair.server._loss._cc.congestion_window = 1200  # room for one packet
    pair.server.datagrams_to_send(pair.now)
    assert queue(pair, streams) == [streams[1], streams[0], streams[2]]


def test_a_reset_is_told_though_there_is_nothing_else_to_say(pair: Pair) -> None:
    stream_id, _ = asked(pair, 2)
    pair.server.stop_sending(stream_id, 7)
    pair.run(4)
    assert stream_id not in pair.client._streams or pair.client._streams[stream_id].receiver.is_finished
