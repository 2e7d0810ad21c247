# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from proxy.listeners.tcp_state import has_left, notice_silence, round_trip_s

RESET = struct.pack("@ii", 1, 0)


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def ends(request) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and its accepted connection."""
    family, host = request.param
    with socket.socket(family) as listening, socket.socket(family) as client:
        listening.bind((host, 0))
        listening.listen()
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            yield client, accepted


def eventually(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_a_client_that_closes_has_left_though_nobody_has_read_what_it_sent(ends):
    client, accepted = ends
    client.sendall(b"unread")
    assert not has_left(accepted)
    client.close()
    eventually(lambda: has_left(accepted))


def test_a_client_that_resets_has_left(ends):
    client, accepted = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    eventually(lambda: has_left(accepted))


def test_the_round_trip_of_loopback_is_short(ends):
    client, accepted = ends
    accepted.sendall(b"x")
    client.recv(1)
    told = round_trip_s(accepted)
    assert told is not None and 0 < told < 1


def test_a_socket_that_is_closed_here_tells_nothing(ends):
    _, accepted = ends
    accepted.close()
    assert has_left(accepted)
    assert round_trip_s(accepted) is None


def test_a_silent_peer_is_given_half_a_minute(ends):
    _, accepted = ends
    notice_silence(accepted)
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    idle, interval, count = (
        accepted.getsockopt(socket.IPPROTO_TCP, name)
        for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle + interval * count == 30


def test_a_unix_socket_has_none_of_it():
    one, other = socket.socketpair()
    with one:
        notice_silence(one)
        other.close()
        assert not has_left(one)
        assert round_trip_s(one) is None
