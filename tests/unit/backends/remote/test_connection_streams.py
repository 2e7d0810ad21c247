# SPDX-License-Identifier: Apache-2.0
"""Event streams on a connection: the deadline ends with the first token, and the reader's patience begins."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from inferlane.errors import Reason, Refused
from tests.fakes.asking import SOON, settle
from tests.fakes.transport import exchange

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = CHUNKED.replace(b"\r\n", b"\r\ncontent-type: Text/Event-Stream; charset=utf-8\r\n", 1)


async def test_the_deadline_of_an_event_stream_ends_with_its_first_byte(connection, transport):
    deadline, passed = monotonic() + 2 * SOON, asyncio.Event()
    task = await exchange(connection, deadline=deadline, events=True)
    before = monotonic()
    connection.data_received(EVENTS)
    await settle()
    assert not task.done()
    connection.data_received(b"3\r\nabc\r\n")
    answer = await task
    assert before <= answer.first_byte <= monotonic()
    asyncio.get_running_loop().call_later(4 * SOON, passed.set)
    await passed.wait()
    assert await anext(answer.body) == b"abc"
    assert not transport.aborted


async def test_an_event_stream_that_does_not_begin_misses_its_deadline(connection, transport):
    task = await exchange(connection, deadline=monotonic() + SOON, events=True)
    connection.data_received(EVENTS)
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE


async def test_whoever_reads_an_event_stream_says_how_long_it_waits(connection, transport, shelf):
    task = await exchange(connection, events=True)
    connection.data_received(EVENTS + b"3\r\nabc\r\n")
    body = (await task).body
    assert await body.next_until(monotonic() + 60) == b"abc"
    assert await body.next_until(monotonic() + SOON) is None
    assert await body.next_until(monotonic() - SOON) is None
    assert await body.next_until(monotonic() + SOON) is None
    waiting = asyncio.ensure_future(body.next_until(monotonic() + 60))
    await settle()
    connection.data_received(b"3\r\ndef\r\n")
    assert await waiting == b"def"
    connection.data_received(b"0\r\n\r\n")
    assert await body.next_until(monotonic() + 60) == b""
    assert shelf.kept == [connection]


async def test_the_next_exchange_has_a_deadline_again(connection, transport):
    task = await exchange(connection, events=True)
    connection.data_received(EVENTS + b"3\r\nabc\r\n0\r\n\r\n")
    await task
    task = await exchange(connection, deadline=monotonic() + SOON)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    body = (await task).body
    assert await anext(body) == b"abc"
    with pytest.raises(Refused) as refused:
        await anext(body)
    assert refused.value.reason is Reason.DEADLINE


async def test_whoever_did_not_ask_for_one_gets_it_within_the_deadline(connection, transport):
    task = await exchange(connection, deadline=monotonic() + SOON)
    connection.data_received(EVENTS + b"3\r\nabc\r\n")
    body = (await task).body
    assert await anext(body) == b"abc"
    with pytest.raises(Refused) as refused:
        await anext(body)
    assert refused.value.reason is Reason.DEADLINE
