# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.messages import EncodedReply, Stages
from inferlane.transports.peer import Peer, settle

REPLY = EncodedReply(body=b"", json_length=None, stages=Stages())


async def test_an_answer_reaches_its_waiter():
    peer, abandoned = Peer("gateway"), []
    expected = peer.expect(1)

    settle(expected, REPLY)

    assert await peer.answer(1, expected, abandoned.append) is REPLY
    assert abandoned == []
    assert repr(peer) == "<Peer gateway alive, 0 in flight>"


async def test_a_refusal_is_raised():
    peer = Peer("gateway")
    expected = peer.expect(1)

    settle(expected, Refused(Reason.QUEUE_FULL))

    with pytest.raises(Refused):
        await peer.answer(1, expected, lambda _: None)


async def test_who_stops_waiting_tells_the_peer():
    peer, abandoned = Peer("gateway"), []
    waiting = asyncio.create_task(peer.answer(1, peer.expect(1), abandoned.append))
    await asyncio.sleep(0)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert abandoned == [1]


async def test_the_end_of_a_connection_answers_everybody():
    peer, abandoned = Peer("gateway"), []
    waiting = [asyncio.create_task(peer.answer(key, peer.expect(key), abandoned.append)) for key in (1, 2)]
    await asyncio.sleep(0)

    assert peer.end("it broke")
    assert not peer.end("again")

    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(each) for each in outcomes] == ["gateway: it broke"] * 2
    assert outcomes[0] is not outcomes[1]
    assert not peer.alive
    with pytest.raises(ConnectionFailed, match="it broke"):
        peer.expect(3)
    assert abandoned == []


async def test_a_late_answer_finds_nobody():
    expected = Peer("gateway").expect(1)
    expected.cancel()

    settle(expected, REPLY)

    assert expected.cancelled()
