# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from inferlane.errors import Reason, Refused
from inferlane.transports.exchanges import Exchanges
from inferlane.transports.peer import Peer
from inferlane.wire import Header, Type, decode, encode

COOKIE = bytes(range(16))


class Path:
    """What was sent, in order, decoded; and the way back."""

    def __init__(self, *, cookies=False):
        self.peer = Peer("gateway")
        self.sent = asyncio.Queue()
        self.exchanges = Exchanges(self.peer, self._send, cookies=cookies)

    def _send(self, datagrams):
        for datagram in datagrams:
            header, start = decode(datagram)
            self.sent.put_nowait((header, datagram[start:]))

    def answer(self, *, body=b"", request_id=7, **fields):
        self.exchanges.received(encode(Header(request_id=request_id, total_length=len(body), **fields)) + body)

    def ask(self, request):
        return asyncio.create_task(self.exchanges.ask(request, max_datagram=1200))


async def test_a_reply_ends_a_conversation(ask):
    path = Path()
    asking = path.ask(ask(b"question"))
    header, payload = await path.sent.get()
    path.answer(type=Type.REPLY, status=200, body=b"answer")

    assert (header.type, header.model, payload) == (Type.REQUEST, "magika", b"question")
    assert (await asking).body == b"answer"
    assert path.sent.empty()


async def test_a_challenge_is_answered_and_its_cookie_kept(ask):
    path = Path(cookies=True)
    asking = path.ask(ask())
    await path.sent.get()
    path.answer(type=Type.CHALLENGE, cookie=COOKIE)

    assert (await path.sent.get())[0].cookie == COOKIE
    path.answer(type=Type.REPLY, status=200)
    await asking
    path.ask(ask(request_id=8))
    assert (await path.sent.get())[0].cookie == COOKIE
    assert path.exchanges.round_trip_s is not None
    path.peer.end("over")


async def test_an_error_is_raised(ask):
    path = Path()
    asking = path.ask(ask())
    await path.sent.get()
    path.answer(type=Type.ERROR, status=404, reason=Reason.UNKNOWN_MODEL.code, body=b'{"detail": "no model"}')

    with pytest.raises(Refused, match="unknown_model: no model"):
        await asking


async def test_silence_is_answered_by_repeats(ask):
    path = Path()
    asking = path.ask(ask())
    first, second = await path.sent.get(), await path.sent.get()

    assert second[1] == first[1]
    assert second[0].request_id == first[0].request_id == 7
    path.answer(type=Type.REPLY, status=200)
    await asking


async def test_the_deadline_ends_a_conversation(ask):
    path = Path()

    with pytest.raises(Refused) as caught:
        await path.ask(ask(timeout_s=0.01))
    assert caught.value.reason is Reason.DEADLINE


async def test_cancelling_sends_a_cancel(ask):
    path = Path()
    asking = path.ask(ask())
    await path.sent.get()
    asking.cancel()

    assert (await path.sent.get())[0].type is Type.CANCEL
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_noise_and_strangers_and_clients_are_not_heard(ask):
    path = Path()
    asking = path.ask(ask())
    await path.sent.get()

    path.exchanges.received(b"\x0b" + bytes(40))
    path.exchanges.received(b"")
    path.answer(type=Type.REPLY, status=200, request_id=1234)
    path.answer(type=Type.PING)
    path.answer(type=Type.REPLY, status=200, body=b"the one")

    assert (await asking).body == b"the one"
