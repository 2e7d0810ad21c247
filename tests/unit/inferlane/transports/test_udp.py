# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket

import pytest

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.transports.sockets import Address, resolve
from inferlane.transports.udp import Udp
from inferlane.wire import Type
from tests.fakes.udp_gateway import COOKIE, udp_gateway


@pytest.fixture
async def connected():
    """Connects to a fake gateway, and closes."""
    opened = []

    async def connect(gateway, *, dscp=0, host="127.0.0.1"):
        (address,) = await resolve(host, gateway.port)
        opened.append(Udp(address, dscp=dscp))
        await opened[-1].connect()
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


def echo(heard):
    heard.send(type=Type.REPLY, status=200, body=heard.payload, dscp=heard.ds_field >> 2)


async def test_the_first_packet_is_a_ping_no_shorter_than_the_challenge_that_answers_it(connected, ask):
    with udp_gateway(echo) as gateway:
        transport = await connected(gateway)
        assert (await transport.exchange(ask(b"question"))).body == b"question"

    kinds = [heard.header.type for heard in gateway.heard]
    assert kinds == [Type.PING, Type.REQUEST]
    assert gateway.heard[1].header.cookie == COOKIE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_every_packet_has_the_mark_of_its_class(connected, ask, host):
    with udp_gateway(echo, host=host) as gateway:
        transport = await connected(gateway, dscp=46, host=host)
        reply = await transport.exchange(ask())

    assert {heard.ds_field for heard in gateway.heard} == {46 << 2}
    assert reply.dscp_seen == 46


async def test_a_lost_ping_is_repeated(connected):
    with udp_gateway(echo) as gateway:
        gateway.silent = True
        connecting = asyncio.create_task(connected(gateway))
        await gateway.arrived.wait()
        gateway.silent = False

        assert (await connecting).alive
    assert len(gateway.heard) == 2


async def test_noise_is_no_greeting(connected):
    with udp_gateway(echo) as gateway:
        gateway.silent = True
        connecting = asyncio.create_task(connected(gateway))
        await gateway.arrived.wait()
        client = gateway.heard[0].client
        for noise in (b"", b"\x0a", bytes(48)):
            gateway.sock.sendto(noise, client)
        gateway.heard[0].send(type=Type.REPLY, status=200)
        gateway.silent = False

        assert (await connecting).alive
    assert len(gateway.heard) == 2


async def test_a_port_where_nobody_listens_is_told_at_once():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = Address(socket.AF_INET, sock.getsockname())
    transport = Udp(address, dscp=0)

    with pytest.raises(ConnectionFailed, match="nothing answers there"):
        await transport.connect()
    assert not transport.alive
    transport.close()


async def test_a_gateway_that_goes_away_takes_its_requests_along(connected, ask):
    asked = asyncio.Queue()
    with udp_gateway(asked.put_nowait) as gateway:
        transport = await connected(gateway)
        waiting = asyncio.create_task(transport.exchange(ask()))
        await asked.get()

    # The next repeat finds the port closed.
    with pytest.raises(ConnectionFailed, match="nothing answers there"):
        await waiting
    assert not transport.alive


async def test_a_gateway_that_falls_silent_is_given_up(connected, ask, monkeypatch):
    monkeypatch.setattr("inferlane.transports.silence.LONGEST_S", 0.01)
    with udp_gateway(echo) as gateway:
        transport = await connected(gateway)
        gateway.silent = True

        with pytest.raises(ConnectionFailed, match="did not answer any more"):
            await transport.exchange(ask())
    assert not transport.alive


async def test_closing_fails_what_is_in_flight(connected, ask):
    asked = asyncio.Queue()
    with udp_gateway(asked.put_nowait) as gateway:
        transport = await connected(gateway)
        waiting = asyncio.create_task(transport.exchange(ask()))
        await asked.get()
        transport.close()

        with pytest.raises(ConnectionFailed, match="the client was closed"):
            await waiting


async def test_a_body_of_too_many_datagrams_belongs_on_a_stream(connected, ask):
    with udp_gateway(echo) as gateway:
        transport = await connected(gateway)
        with pytest.raises(Refused) as caught:
            await transport.exchange(ask(bytes(20_000)))

    assert caught.value.reason is Reason.USE_STREAM
