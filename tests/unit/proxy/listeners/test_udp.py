# SPDX-License-Identifier: Apache-2.0
"""Our own UDP socket on loopback: marks are read, bursts are bounded, nothing that a peer does stops it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from proxy.listeners.udp import BURST, Address, UdpSocket, bind


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
    assert server.send_failures >= 1
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
