# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.transports.quic import ALPN_NATIVE, client_configuration
from inferlane.transports.sockets import resolve
from inferlane.transports.stream import CANCELLED, Stream
from inferlane.wire import UNTIL_FIN, Header, Type, encode
from tests.fakes.quic_gateway import quic_gateway


def reply_to(asked, **fields):
    given = {"type": Type.REPLY, "status": 200, "total_length": UNTIL_FIN}
    return encode(Header(request_id=asked.header.request_id, **{**given, **fields}))


@pytest.fixture
async def connected(pair, trust, target_of):
    """Connects to a fake gateway, and closes."""
    opened = []

    async def connect(gateway, *, max_reply=1 << 20):
        target = target_of(gateway.port, "quic")
        (address,) = await resolve(target.host, target.port)
        configuration = client_configuration(target, trust, ALPN_NATIVE)
        opened.append(Stream(address, configuration, dscp=0, max_reply=max_reply))
        await opened[-1].connect()
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


async def test_a_message_goes_out_and_one_comes_back(pair, connected, ask):
    seen = []

    def answer(asked):
        seen.append(asked)
        head = reply_to(asked, class_name="batch", dscp=46, queue_us=1, backend_us=2, compute_us=3, json_length=2)
        asked.send(head[:40], end=False)
        asked.send(head[40:] + b"{}" + asked.body)

    async with quic_gateway(answer, pair) as gateway:
        transport = await connected(gateway)
        reply = await transport.exchange(ask(b"{}tensor", json_length=2, request_id=9))

    assert (reply.body, reply.json_length) == (b"{}{}tensor", 2)
    assert (reply.served_class, reply.dscp_seen, reply.stages.compute) == ("batch", 46, 3e-6)
    header = seen[0].header
    assert (header.request_id, header.model, header.class_name, header.json_length) == (9, "magika", "realtime", 2)
    assert header.total_length == UNTIL_FIN
    assert 0 < header.remaining_us <= 30_000_000


async def test_many_messages_share_a_connection(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.send(reply_to(asked) + asked.body), pair) as gateway:
        transport = await connected(gateway)
        bodies = [b"%d" % n for n in range(300)]
        replies = await asyncio.gather(*(transport.exchange(ask(body)) for body in bodies))

    assert [reply.body for reply in replies] == bodies


async def test_an_error_is_a_refusal(pair, connected, ask):
    def answer(asked):
        fields = {"type": Type.ERROR, "status": 503, "reason": Reason.QUEUE_FULL.code, "retry_after_ms": 50}
        asked.send(reply_to(asked, **fields) + b'{"detail": "come back"}')

    async with quic_gateway(answer, pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(Refused, match="queue_full: come back") as caught:
            await transport.exchange(ask())

    assert caught.value.retry_after_s == 0.05


@pytest.mark.parametrize("damage", [lambda head: b"\x0bjunk", lambda head: head[:20], lambda head: b""])
async def test_what_is_no_message_is_a_failed_exchange(pair, connected, ask, damage):
    async with quic_gateway(lambda asked: asked.send(damage(reply_to(asked))), pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(ConnectionFailed, match="no inference message"):
            await transport.exchange(ask())
    assert transport.alive


async def test_a_reply_that_breaks_off_is_noticed(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.send(reply_to(asked, total_length=10) + b"short"), pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(ConnectionFailed, match="10, and 5 bytes came"):
            await transport.exchange(ask())


async def test_a_reset_reply_is_no_clean_end(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.reset(3), pair) as gateway:
        transport = await connected(gateway)
        with pytest.raises(ConnectionFailed, match="broke the reply off"):
            await transport.exchange(ask())
    assert transport.alive


async def test_a_reply_beyond_the_bound_is_stopped(pair, connected, ask):
    async with quic_gateway(lambda asked: asked.send(reply_to(asked) + bytes(9000)), pair) as gateway:
        transport = await connected(gateway, max_reply=5000)
        with pytest.raises(Refused, match="longer than 5000 bytes"):
            await transport.exchange(ask())


async def test_cancelling_tells_the_gateway(pair, connected, ask):
    asked = asyncio.Queue()

    async with quic_gateway(asked.put_nowait, pair) as gateway:
        transport = await connected(gateway)
        waiting = asyncio.create_task(transport.exchange(ask()))
        await asked.get()
        waiting.cancel()

        assert await gateway.given_up.get() == (0, CANCELLED)
