# SPDX-License-Identifier: Apache-2.0
"""Trains are taken apart, bursts end, and what the kernel dropped is counted and told once a minute."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from proxy.sockets.addresses import Address, ReachedAddress
from proxy.sockets.linux import IP_PKTINFO, SO_RXQ_OVFL, SOL_UDP, UDP_GRO
from proxy.sockets.receiver import BURST, Receiver
from qos.marking import Ancillary

PEER = ("192.0.2.1", 5000)
Message = tuple[bytes, list[Ancillary], int]


class Script:
    """A socket that gives these messages, or raises these errors, and then has nothing."""

    def __init__(self, messages: Sequence[Message | OSError]) -> None:
        self._messages = list(messages)

    def recvmsg_into(self, buffers: list[memoryview], _: int) -> tuple[int, list[Ancillary], int, Address]:
        if not self._messages:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        message = self._messages.pop(0)
        if isinstance(message, OSError):
            raise message
        data, parts, flags = message
        buffers[0][: len(data)] = data
        return len(data), parts, flags, PEER

    def getsockname(self) -> Address:
        return "192.0.2.9", 443


class Reading:
    def __init__(self, *messages: Message | OSError) -> None:
        self.got: list[tuple[bytes, Address, int]] = []
        self.now = 100.0
        script: socket.socket = Script(messages)  # type: ignore[assignment]  # all that a receiver uses
        self.receiver = Receiver(script, lambda *one: self.got.append(one), clock=lambda: self.now)


def gro(size: int) -> Ancillary:
    return SOL_UDP, UDP_GRO, size.to_bytes(4, sys.byteorder)


def overflow(drops: int) -> Ancillary:
    return socket.SOL_SOCKET, SO_RXQ_OVFL, drops.to_bytes(4, sys.byteorder)


@pytest.mark.parametrize("length", [1, 99, 100, 101, 250, 300])
def test_a_train_is_taken_apart(length):
    data = bytes(range(256)) * 2
    reading = Reading((data[:length], [gro(100), (socket.IPPROTO_IP, socket.IP_TOS, b"\x2e")], 0))
    reading.receiver.burst()
    assert [each[0] for each in reading.got] == [
        data[start : min(start + 100, length)] for start in range(0, length, 100)
    ]
    assert {each[1:] for each in reading.got} == {(PEER, 0x2E)}
    assert (reading.receiver.received, reading.receiver.messages) == (len(reading.got), 1)


def test_a_burst_ends_whatever_comes():
    train = (bytes(1000), [gro(100)], 0)
    for flood in ((b"", [], 0), (b"x", [], 0), (b"x", [], socket.MSG_TRUNC), OSError(errno.ECONNREFUSED, "refused")):
        reading = Reading(*([flood] * 3 * BURST))
        reading.receiver.burst()
        assert reading.receiver.received <= BURST
        reading.receiver.burst()
        assert reading.receiver.received <= 2 * BURST
    reading = Reading(*([train] * BURST))
    reading.receiver.burst()
    assert BURST <= len(reading.got) < BURST + 10


def test_empty_datagrams_arrive_and_a_cut_one_does_not():
    reading = Reading((b"", [], 0), (b"cut", [], socket.MSG_TRUNC), (b"whole", [], 0))
    reading.receiver.burst()
    assert [each[0] for each in reading.got] == [b"", b"whole"]
    assert (reading.receiver.received, reading.receiver.truncated) == (3, 1)


def test_a_closed_socket_is_not_asked_for_ever():
    reading = Reading(OSError(errno.EBADF, "closed"))
    with pytest.raises(OSError, match="closed"):
        reading.receiver.burst()


def test_drops_of_the_kernel_are_counted_and_told_once_a_minute():
    reading = Reading(*((b"x", [overflow(drops)], 0) for drops in (5, 5, 9)))
    with capture_logs() as lines:
        reading.receiver.burst()
    assert reading.receiver.kernel_drops == 9
    assert [(line["event"], line["dropped"]) for line in lines] == [("kernel_dropped_datagrams", 5)]
    assert "rmem_max" in lines[0]["remedy"]


def test_more_drops_than_the_kernel_can_count():
    reading = Reading(*((b"x", [overflow(drops)], 0) for drops in (2**32 - 1, 3)))
    reading.receiver.burst()
    assert reading.receiver.kernel_drops == 2**32 + 3


def test_the_address_of_ours_travels_with_the_peer_s():
    ours = (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + bytes([127, 0, 0, 2]) + bytes(4))
    reading = Reading((b"x", [ours], 0), (b"y", [], 0))
    reading.receiver.burst()
    first, second = (each[1] for each in reading.got)
    assert first == second == PEER
    assert hash(first) == hash(second)
    assert repr(first) == repr(second)  # cookies are of this text
    assert isinstance(first, ReachedAddress)
    assert first.source == ours
