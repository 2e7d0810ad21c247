# SPDX-License-Identifier: Apache-2.0
"""Two of our UDP sockets over the real kernel: trains arrive cut, with their mark, from the address that was asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.listeners.udp import UdpSocket, bind
from proxy.sockets.addresses import Address
from qos.marking import UNMARKED, Mark
from tests.fakes.namespaces import joined

FLIGHT = [bytes([number]) * 1200 for number in range(30)] + [b"end"]
REALTIME = Mark(46, 6)


class Side:
    """A socket, and what has come to it."""

    def __init__(self, sock: socket.socket, *, echoes: bool = False) -> None:
        self.got: list[tuple[bytes, Address, int]] = []
        self._echoes = echoes
        self.socket = UdpSocket(sock, self._receive, burst_ended=lambda: None)

    def _receive(self, datagram: bytes, address: Address, ds_field: int) -> None:
        self.got.append((datagram, address, ds_field))
        if self._echoes:
            self.socket.send_all(FLIGHT, address, REALTIME)
            self.socket.send(b"single", address)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def sides(client: str, server: str) -> AsyncIterator[tuple[Side, Side]]:
    one, other = Side(bind(client, 0)), Side(bind(server, 0), echoes=True)
    yield one, other
    one.socket.close()
    other.socket.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_flight_arrives_as_it_was_under_its_mark(host: str) -> None:
    async with sides(host, host) as (client, server):
        client.socket.send_all(FLIGHT, server.socket.address, REALTIME)
        await server.until(len(FLIGHT))
        assert [each[0] for each in server.got] == FLIGHT
        assert {each[2] >> 2 for each in server.got} == {46}
        assert client.socket.trains == {"sent": 2, "refused": 0}
        assert server.socket.received == len(FLIGHT)
        assert server.socket.kernel_drops == 0


@pytest.mark.parametrize(
    ("client", "wildcard", "asked"),
    [("127.0.0.1", "0.0.0.0", "127.0.0.2"), ("127.0.0.1", "0.0.0.0", "127.0.0.3"), ("::1", "::", "::1")],
)
async def test_a_reply_leaves_from_the_address_that_was_asked(client: str, wildcard: str, asked: str) -> None:
    async with sides(client, wildcard) as (one, server):
        there = (asked, server.socket.address[1])
        one.socket.send(b"where are you?", there)
        await one.until(len(FLIGHT) + 1)
        assert {each[1][:2] for each in one.got} == {there}
        assert [each[0] for each in one.got] == [*FLIGHT, b"single"]
        assert [each[2] >> 2 for each in one.got] == [46] * len(FLIGHT) + [UNMARKED.dscp]


async def test_what_a_full_buffer_costs_is_counted() -> None:
    sock = bind("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server = Side(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(100):
            client.sendto(bytes(1000), server.socket.address)
        await server.until(1)
        while server.socket.kernel_drops == 0:
            client.sendto(b"the next one tells", server.socket.address)
            await asyncio.sleep(0.001)
    lost = server.socket.kernel_drops
    assert 0 < lost < 100
    assert server.socket.received >= 100 - lost
    server.socket.close()


@pytest.mark.parametrize("version", [4, 6])
async def test_a_path_that_becomes_narrow_loses_nothing(version: int) -> None:
    """Below what QUIC asks of a path, too: then the kernel cuts single datagrams to IP fragments."""
    with joined("narrow") as (left, right):
        ours, theirs = (getattr(host, f"v{version}") for host in (left, right))
        client = Side(left.call(lambda: bind(ours, 0)))
        server = Side(right.call(lambda: bind(theirs, 0)))
        to = (theirs, server.socket.address[1])
        client.socket.send_all(FLIGHT, to, REALTIME)
        await server.until(len(FLIGHT))
        left.ip(f"link set eth0 mtu {1000 if version == 4 else 1280}")
        client.socket.send_all([b"w" * 1240] * 4, to, REALTIME)
        await server.until(len(FLIGHT) + 4)
        assert {each[0] for each in server.got[-4:]} == {b"w" * 1240}
        assert client.socket.trains == {"sent": 2, "refused": 0}
        assert sum(client.socket.dropped.values()) == 0
        client.socket.close()
        server.socket.close()
