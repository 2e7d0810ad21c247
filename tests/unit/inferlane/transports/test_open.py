# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket

import pytest

from inferlane.errors import ConnectionFailed
from inferlane.transports.http3 import Http3
from inferlane.transports.open import connect, transport_for
from inferlane.transports.quic_datagram import QuicDatagram
from inferlane.transports.sockets import Address
from inferlane.transports.stream import Stream
from inferlane.transports.udp import Udp


class FakeTransport:
    """Connects as the test says: an exception, None, or for ever."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.begun = asyncio.Event()
        self.closed = False

    async def connect(self):
        self.begun.set()
        if self.outcome == "silence":
            await asyncio.get_running_loop().create_future()
        if isinstance(self.outcome, Exception):
            raise self.outcome

    def close(self):
        self.closed = True


def outcomes(*each):
    """A maker that gives the first address the first outcome, and so on; and what it made."""
    left, made = list(each), []

    def make(address):
        outcome = left.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        made.append(FakeTransport(outcome))
        return made[-1]

    return make, made


@pytest.fixture
def localhost(target_of, monkeypatch):
    """A name with two addresses, whatever this machine's hosts file says."""

    async def resolve(host, port):
        return [Address(socket.AF_INET6, ("::1", port, 0, 0)), Address(socket.AF_INET, ("127.0.0.1", port))]

    monkeypatch.setattr("inferlane.transports.open.resolve", resolve)
    return target_of(4433, host="localhost")


@pytest.mark.parametrize("first", [ConnectionFailed("refused"), OSError(101, "Network is unreachable"), "silence"])
async def test_the_next_address_is_tried(localhost, first):
    make, made = outcomes(first, None)

    assert await connect(localhost, make, timeout=0.05) is made[-1]
    assert [each.closed for each in made[:-1]] == [True] * (len(made) - 1)
    assert not made[-1].closed


async def test_a_failure_tells_what_each_address_said(localhost):
    make, _ = outcomes(OSError(101, "Network is unreachable"), "silence")

    with pytest.raises(ConnectionFailed, match=r"^\[::1\]:4433: Network is unreachable; 127.0.0.1:4433: no answer"):
        await connect(localhost, make, timeout=0.02)


async def test_a_cancelled_attempt_leaves_nothing_open(localhost):
    transport = FakeTransport("silence")
    connecting = asyncio.create_task(connect(localhost, lambda address: transport, timeout=60.0))
    await transport.begun.wait()

    connecting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert transport.closed


async def test_a_name_that_is_not_resolved_in_time(target_of, monkeypatch):
    async def resolve(host, port):
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr("inferlane.transports.open.resolve", resolve)
    with pytest.raises(ConnectionFailed, match="not resolved within"):
        await connect(target_of(1), outcomes()[0], timeout=0.01)


@pytest.mark.parametrize(
    ("scheme", "kind"), [("https", Http3), ("quic", Stream), ("quic+datagram", QuicDatagram), ("udp", Udp)]
)
async def test_every_scheme_has_its_transport(target_of, trust, scheme, kind):
    make = transport_for(target_of(9, scheme), trust, dscp=0, max_reply=1)

    transport = make(Address(socket.AF_INET, ("127.0.0.1", 9)))

    assert isinstance(transport, kind)
    transport.close()
