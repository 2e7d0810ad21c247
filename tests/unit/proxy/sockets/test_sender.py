# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost to a refused train or a moment without room; what is lost is counted, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from proxy.sockets.addresses import Address, ReachedAddress
from proxy.sockets.linux import IP_PKTINFO, SOL_UDP, UDP_SEGMENT
from proxy.sockets.sender import Sender
from qos.marking import UNMARKED, Ancillary, Mark

PEER = ("192.0.2.1", 5000)
REALTIME = Mark(46, 6)
FLIGHT = [bytes([number]) * 1200 for number in range(5)] + [b"end"]
OURS = (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + bytes([127, 0, 0, 2]) + bytes(4))


class Wire(socket.socket):
    """Writes down what would be on the wire; `refusing` is asked about each message first."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.messages: list[list[bytes]] = []
        self.parts: list[list[Ancillary]] = []
        self.refuse_train = self.refuse_all = 0
        self.times = 1_000_000

    @property
    def datagrams(self) -> list[bytes]:
        return [each for message in self.messages for each in message]

    def sendto(self, datagram: bytes, address: Address) -> int:  # type: ignore[override]  # the form that is used
        return self.sendmsg([datagram], [], 0, address)

    def sendmsg(self, datagrams: Sequence[bytes], parts: list[Ancillary], _: int, __: Address) -> int:  # type: ignore[override]
        code = self.refuse_all or (self.refuse_train if len(datagrams) > 1 else 0)
        if code and self.times:
            self.times -= 1
            raise OSError(code, "refused")
        self.messages.append(list(datagrams))
        self.parts.append(parts)
        return sum(map(len, datagrams))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def sending() -> AsyncIterator[tuple[Sender, Wire, Clock]]:
    with Wire() as wire:
        clock = Clock()
        sender = Sender(wire, per_packet=True, clock=clock)
        yield sender, wire, clock
        sender.close()


async def test_a_flight_is_one_message_with_its_mark_and_its_source() -> None:
    async with sending() as (sender, wire, _):
        address = ReachedAddress(PEER)
        address.source = OURS
        sender.send_all(FLIGHT, address, REALTIME)
        sender.send(b"one", address, UNMARKED)
        assert wire.messages == [FLIGHT, [b"one"]]
        kinds = [(level, kind) for level, kind, _ in wire.parts[0]]
        assert kinds == [(0, socket.IP_TOS), (1, 12), (SOL_UDP, UDP_SEGMENT), OURS[:2]]
        assert wire.parts[1] == [OURS]
        assert (sender.sent, sender.trains, sender.messages) == (7, 1, 2)


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOPROTOOPT], ids=errno.errorcode.get
)
async def test_a_refused_train_goes_singly_and_no_other_is_tried_for_a_while(code: int) -> None:
    async with sending() as (sender, wire, clock):
        wire.refuse_train = code
        with capture_logs() as lines:
            for _ in range(3):
                sender.send_all(FLIGHT, PEER)
        assert wire.datagrams == FLIGHT * 3
        assert (sender.trains_refused, sum(sender.dropped.values())) == (1, 0)
        assert [line["event"] for line in lines] == ["trains_refused"]
        assert lines[0]["remedy"]
        wire.refuse_train = 0
        clock.now += 61
        sender.send_all(FLIGHT, PEER)
        assert wire.messages[-1] == FLIGHT


async def test_a_narrow_path_takes_trains_from_nobody_else() -> None:
    async with sending() as (sender, wire, _):
        wire.refuse_train = errno.EMSGSIZE
        sender.send_all(FLIGHT, PEER)
        assert wire.datagrams == FLIGHT
        wire.refuse_train = 0
        sender.send_all(FLIGHT, PEER)
        assert wire.messages[-1] == FLIGHT
        assert sender.trains_refused == 0


@pytest.mark.parametrize(("code", "reason"), [(errno.EMSGSIZE, "too_long"), (errno.EPERM, "send_failed")])
async def test_what_no_path_takes_is_counted_and_forgotten(code: int, reason: str) -> None:
    async with sending() as (sender, wire, _):
        wire.refuse_all = code
        sender.send_all(FLIGHT, PEER)
        assert sender.dropped[reason] == sum(sender.dropped.values()) == len(FLIGHT)
        wire.refuse_all = 0
        sender.send_all(FLIGHT, PEER)
        assert wire.messages == [FLIGHT]


async def _until(wire: Wire, count: int) -> None:
    async with asyncio.timeout(20):
        while len(wire.datagrams) < count:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS], ids=errno.errorcode.get)
async def test_a_moment_without_room_costs_nothing_and_changes_no_order(code: int) -> None:
    async with sending() as (sender, wire, _):
        wire.refuse_all, wire.times = code, 2
        sender.send_all(FLIGHT, PEER)
        sender.send(b"next", PEER)
        assert wire.datagrams == []
        await _until(wire, len(FLIGHT) + 1)
        assert wire.datagrams == [*FLIGHT, b"next"]
        sender.send(b"at once", PEER)
        assert wire.datagrams[-1] == b"at once"
        assert sum(sender.dropped.values()) == 0


async def test_no_room_at_all_keeps_little_and_not_for_long() -> None:
    async with sending() as (sender, wire, clock):
        wire.refuse_all = errno.ENOBUFS
        for _ in range(1000):
            sender.send_all(FLIGHT, PEER)
        kept = 1000 * len(FLIGHT) - sender.dropped["backlog_full"]
        assert 0 < kept * 1000 < 300 * 1024
        clock.now += 1
        async with asyncio.timeout(20):
            while sender.dropped["backlog_full"] < 1000 * len(FLIGHT):
                await asyncio.sleep(0.001)
        wire.refuse_all = 0
        sender.send(b"after", PEER)
        assert wire.datagrams == [b"after"]


async def test_a_refusal_met_while_waiting_is_its_own() -> None:
    async with sending() as (sender, wire, _):
        wire.refuse_all, wire.times = errno.ENOBUFS, 1
        sender.send_all(FLIGHT, PEER)
        wire.times, wire.refuse_all, wire.refuse_train = 1_000_000, 0, errno.EIO
        await _until(wire, len(FLIGHT))
        assert wire.datagrams == FLIGHT


async def test_a_closed_socket_is_a_fault_of_ours() -> None:
    async with sending() as (sender, wire, _):
        wire.refuse_all = errno.EBADF
        with pytest.raises(OSError, match="refused"):
            sender.send(b"x", PEER)
