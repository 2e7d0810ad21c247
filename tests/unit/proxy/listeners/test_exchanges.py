# SPDX-License-Identifier: Apache-2.0
"""Walks are counted while they run, cancelled by key, and their end is told however they ended."""

from __future__ import annotations

import asyncio

from proxy.listeners.exchanges import Exchanges
from tests.fakes.walk import FakeWalk, RecordingResponder, arrival, echo, never


async def test_an_exchange_ends_and_says_so() -> None:
    exchanges, ended = Exchanges(FakeWalk(echo)), asyncio.Event()
    responder = RecordingResponder()
    exchanges.start("a", arrival(b"x"), responder, ended=ended.set)
    assert len(exchanges) == 1
    await asyncio.wait_for(ended.wait(), 20)
    assert len(exchanges) == 0
    assert [each.body for each in responder.replies] == [b"x"]


async def test_cancelling_one_leaves_the_others() -> None:
    walk = FakeWalk(never)
    exchanges, ended = Exchanges(walk), asyncio.Event()
    exchanges.start("a", arrival(b"x"), RecordingResponder(), ended=ended.set)
    exchanges.start("b", arrival(b"x"), RecordingResponder())
    await asyncio.sleep(0)
    exchanges.cancel("a")
    exchanges.cancel("unknown")
    await asyncio.wait_for(ended.wait(), 20)
    assert (len(exchanges), walk.cancelled) == (1, 1)
    exchanges.cancel_all()
    while len(exchanges):
        await asyncio.sleep(0)
    assert walk.cancelled == 2
