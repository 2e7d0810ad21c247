# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from inferlane.errors import ConnectionFailed
from inferlane.transports.sockets import Address, UdpSocket, resolve


@pytest.fixture
def listener():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        yield sock


def address_of(sock):
    return Address(socket.AF_INET, sock.getsockname())


class Ear:
    """Collects what a socket tells."""

    def __init__(self):
        self.bursts = asyncio.Queue()
        self.failures = asyncio.Queue()

    def open(self, address, dscp=0):
        return UdpSocket(address, dscp=dscp, received=self.bursts.put_nowait, failed=self.failures.put_nowait)


async def test_packets_go_both_ways_and_come_in_bursts(listener):
    ear = Ear()
    sock = ear.open(address_of(listener))
    sock.send(b"question")
    data, client = await asyncio.to_thread(listener.recvfrom, 100)
    for answer in (b"one", b"", b"three"):
        listener.sendto(answer, client)

    assert data == b"question"
    assert await ear.bursts.get() == [b"one", b"", b"three"]
    sock.close()


async def test_a_burst_is_bounded(listener):
    ear = Ear()
    sock = ear.open(address_of(listener))
    sock.send(b"question")
    _, client = await asyncio.to_thread(listener.recvfrom, 100)
    for n in range(100):
        listener.sendto(bytes([n]), client)

    first, second = await ear.bursts.get(), await ear.bursts.get()

    assert (len(first), len(second)) == (64, 36)
    sock.close()


async def test_a_port_where_nobody_listens_is_told_once(listener):
    address = address_of(listener)
    listener.close()
    ear = Ear()
    sock = ear.open(address)
    sock.send(b"anybody?")

    assert (await ear.failures.get()).errno == errno.ECONNREFUSED
    sock.send(b"still nobody")
    sock.close()
    assert ear.failures.empty()


async def test_a_packet_too_long_for_the_path_is_a_lost_packet(listener):
    ear = Ear()
    sock = ear.open(address_of(listener))
    sock.send(bytes(70_000))
    sock.send(b"short")

    assert await asyncio.to_thread(listener.recv, 100) == b"short"
    assert ear.failures.empty()
    sock.close()


async def test_an_address_without_a_route_is_an_error_at_once():
    with pytest.raises(PermissionError):
        Ear().open(Address(socket.AF_INET, ("255.255.255.255", 4433)))


async def test_a_name_has_each_address_once():
    assert await resolve("127.0.0.1", 4433) == [Address(socket.AF_INET, ("127.0.0.1", 4433))]
    assert [str(each) for each in await resolve("::1", 4433)] == ["[::1]:4433"]


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 70 + ".example", "..", "\udc80"])
async def test_a_name_without_an_address_is_a_failed_connection(name):
    with pytest.raises(ConnectionFailed, match=r"no address|not a host name"):
        await resolve(name, 4433)


def test_a_scope_is_no_part_of_the_address():
    assert Address(socket.AF_INET6, ("fe80::1%eth0", 1, 0, 2)).host == "fe80::1"
