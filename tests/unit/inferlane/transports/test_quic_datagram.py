# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.transports.quic import ALPN_NATIVE, client_configuration
from inferlane.transports.quic_datagram import QuicDatagram
from inferlane.transports.sockets import resolve
from inferlane.wire import Type
from tests.fakes.quic_gateway import quic_gateway


@pytest.fixture
async def connected(pair, trust, target_of):
    """Connects to a fake gateway, and closes."""
    opened = []

    async def connect(gateway):
        target = target_of(gateway.port, "quic+datagram")
        (address,) = await resolve(target.host, target.port)
        opened.append(QuicDatagram(address, client_configuration(target, trust, ALPN_NATIVE), dscp=0))
        await opened[-1].connect()
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


async def test_a_datagram_is_answered_by_a_datagram(pair, connected, ask):
    seen = []

    def answer(asked):
        seen.append(asked.header)
        asked.datagram(type=Type.REPLY, status=200, body=asked.body, dscp=46)

    async with quic_gateway(answer, pair) as gateway:
        transport = await connected(gateway)
        replies = await asyncio.gather(*(transport.exchange(ask(b"%d" % n, request_id=n)) for n in range(50)))

    assert [reply.body for reply in replies] == [b"%d" % n for n in range(50)]
    assert {header.cookie for header in seen} == {None}
    assert replies[0].dscp_seen == 46


async def test_a_body_of_several_datagrams_arrives_in_pieces_that_fit(pair, connected, ask):
    pieces = {}

    def answer(asked):
        pieces[asked.header.index] = asked.body
        if len(pieces) == asked.header.count:
            asked.datagram(type=Type.REPLY, status=200, body=b"%d" % sum(map(len, pieces.values())))

    async with quic_gateway(answer, pair) as gateway:
        transport = await connected(gateway)
        reply = await transport.exchange(ask(bytes(3000)))

    assert reply.body == b"3000"
    assert len(pieces) == 3


async def test_a_body_of_too_many_datagrams_belongs_on_a_stream(pair, connected, ask):
    async with quic_gateway(lambda asked: None, pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(Refused, match="use a stream") as caught:
            await transport.exchange(ask(bytes(20_000)))

    assert caught.value.reason is Reason.USE_STREAM


async def test_cancelling_tells_the_gateway(pair, connected, ask):
    asked = asyncio.Queue()

    async with quic_gateway(asked.put_nowait, pair) as gateway:
        transport = await connected(gateway)
        waiting = asyncio.create_task(transport.exchange(ask(request_id=9)))
        await asked.get()
        waiting.cancel()

        assert await gateway.given_up.get() == (9, 0)


async def test_a_gateway_without_datagrams_is_told_at_once(pair, connected):
    async with quic_gateway(lambda asked: None, pair, datagrams=False) as gateway:
        with pytest.raises(ConnectionFailed, match=r"takes no DATAGRAM; use quic://"):
            await connected(gateway)
