# SPDX-License-Identifier: Apache-2.0
"""Our own UDP socket on loopback: marks are read, bursts are bounded, nothing that a peer does stops it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from proxy.listeners.udp import BURST, Address, UdpSocket, bind, marks_packets
from qos.marking import UNMARKED, Mark, received_ds_field


class Received:
    def __init__(self) -> None:
        self.datagrams: list[tuple[bytes, Address, int]] = []
        self.bursts: list[int] = []
        self._before = 0

    def datagram(self, data: bytes, address: Address, ds_field: int) -> None:
        self.datagrams.append((data, address, ds_field))

    def burst_ended(self) -> None:
        self.bursts.append(len(self.datagrams) - self._before)
        self._before = len(self.datagrams)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.datagrams) < count:
                await asyncio.sleep(0.001)


@pytest.fixture(params=["127.0.0.1", "::1"])
def client(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind((request.param, 0))
        yield sock


async def test_ds_field_and_reply_address(client: socket.socket) -> None:
    host, received = client.getsockname()[0], Received()
    server = UdpSocket(bind(host, 0), received.datagram, burst_ended=received.burst_ended)
    if client.family == socket.AF_INET6:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 46 << 2 | 2)
    else:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2 | 2)
    client.sendto(b"hello", server.address)
    await received.until(1)
    data, address, ds_field = received.datagrams[0]
    assert (data, ds_field) == (b"hello", 46 << 2 | 2)  # EF, and the ECN bits untouched
    server.send(b"back", address)
    assert client.recv(100) == b"back"
    assert (server.received, server.sent) == (1, 1)
    server.close()


async def test_a_flood_is_read_in_bursts_and_empty_datagrams_count(client: socket.socket) -> None:
    host, received = client.getsockname()[0], Received()
    server = UdpSocket(bind(host, 0), received.datagram, burst_ended=received.burst_ended)
    for _ in range(3 * BURST):
        client.sendto(b"", server.address)
    await received.until(3 * BURST)
    assert max(received.bursts) <= BURST
    server.close()


async def test_the_largest_datagram_arrives_whole(client: socket.socket) -> None:
    host, received = client.getsockname()[0], Received()
    server = UdpSocket(bind(host, 0), received.datagram, burst_ended=received.burst_ended)
    client.sendto(bytes(65_000), server.address)
    await received.until(1)
    assert len(received.datagrams[0][0]) == 65_000
    server.close()


async def test_a_peer_that_is_gone_stops_nothing(client: socket.socket) -> None:
    host, received = client.getsockname()[0], Received()
    server = UdpSocket(bind(host, 0), received.datagram, burst_ended=received.burst_ended)
    with socket.socket(client.family, socket.SOCK_DGRAM) as gone:
        gone.bind((host, 0))
        nobody = gone.getsockname()
    for _ in range(3):
        server.send(b"x", nobody)  # answered by ICMP
    client.sendto(b"still there?", server.address)
    await received.until(1)
    server.send(bytes(70_000), client.getsockname())  # EMSGSIZE
    assert server.dropped["too_long"] == 1
    server.close()


REALTIME, BULK = Mark(46, 6), Mark(1, 2)


def dual_stack() -> socket.socket:
    """Not one of ours: they are of one family each."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    sock.bind(("::", 0))
    return sock


def marks_of(client: socket.socket, count: int) -> list[int]:
    """The DS fields of what comes."""
    if client.family == socket.AF_INET6:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    else:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    return [received_ds_field(client.recvmsg(100, 100)[1]) for _ in range(count)]


@pytest.mark.parametrize("per_packet", [True, False])
@pytest.mark.parametrize("mapped", [False, True])
async def test_each_datagram_carries_its_mark(client: socket.socket, per_packet: bool, mapped: bool) -> None:
    if per_packet and not marks_packets():
        pytest.skip("this kernel takes no priority with a packet")
    received = Received()
    sock = dual_stack() if mapped else bind(client.getsockname()[0], 0)
    server = UdpSocket(sock, received.datagram, burst_ended=received.burst_ended, mark=BULK, per_packet=per_packet)
    peer = client.getsockname()
    if mapped and client.family == socket.AF_INET:
        peer = (f"::ffff:{peer[0]}", peer[1])
    marks_of(client, 0)
    for mark in (BULK, REALTIME, BULK, REALTIME, REALTIME, UNMARKED):
        server.send(b"x", peer, mark)
    server.send(b"x", peer)
    assert marks_of(client, 7) == [1 << 2, 46 << 2, 1 << 2, 46 << 2, 46 << 2, 0, 0]
    assert (server.sent, sum(server.dropped.values())) == (7, 0)
    client.sendto(b"to a dual-stack socket, too", (client.getsockname()[0], server.address[1]))
    await received.until(1)
    server.close()


class Spy(socket.socket):
    """Writes down how it is asked to send."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.asked: list[object] = []

    def sendto(self, datagram: bytes, address: Address) -> int:  # type: ignore[override]  # the form that is used
        self.asked.append("plain")
        return len(datagram)

    def sendmsg(self, *arguments: object) -> int:  # type: ignore[override]
        self.asked.append(arguments[1])
        return 1

    def setsockopt(self, *option: object) -> None:  # type: ignore[override]
        self.asked.append(option)


EF_TOS = (socket.IPPROTO_IP, socket.IP_TOS)
PRIORITY = (socket.SOL_SOCKET, 12)


async def test_the_usual_mark_costs_nothing_and_another_one_s_priority_comes_after_its_field() -> None:
    spy = Spy()
    server = UdpSocket(spy, lambda *_: None, burst_ended=lambda: None, mark=BULK, per_packet=True)
    spy.asked.clear()
    for mark in (BULK, REALTIME, Mark(1, 2), REALTIME):
        server.send(b"x", ("127.0.0.1", 9), mark)
    usual, other, also_usual, again = spy.asked
    assert usual == also_usual == "plain"
    assert [part[:2] for part in other] == [EF_TOS, PRIORITY]  # type: ignore[attr-defined]
    assert other is again  # made once
    server.close()


async def test_where_the_kernel_takes_no_priority_the_socket_is_marked_once_a_change() -> None:
    spy = Spy()
    server = UdpSocket(spy, lambda *_: None, burst_ended=lambda: None, mark=BULK, per_packet=False)
    spy.asked.clear()
    for mark in (BULK, REALTIME, REALTIME, BULK):
        server.send(b"x", ("127.0.0.1", 9), mark)
    to_realtime, to_bulk = ([(*EF_TOS, mark.dscp << 2), (*PRIORITY, mark.priority)] for mark in (REALTIME, BULK))
    assert spy.asked == ["plain", *to_realtime, "plain", "plain", *to_bulk, "plain"]
    server.close()


def test_a_taken_port_is_one_line_with_the_address() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(OSError, match=f"cannot listen on udp 127.0.0.1:{port}"):
        bind("127.0.0.1", port)
    first.close()


def test_a_dual_stack_socket_is_never_made() -> None:
    sock = bind("::1", 0)
    assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    sock.close()
