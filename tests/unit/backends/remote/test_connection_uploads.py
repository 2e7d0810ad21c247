# SPDX-License-Identifier: Apache-2.0
"""Request bodies that are sent while they arrive."""

from __future__ import annotations

from time import monotonic

import pytest

from backends.body import Body
from inferlane.errors import Reason, Refused
from tests.fakes.asking import SOON, settle
from tests.fakes.transport import exchange

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


async def test_a_body_of_known_length_is_sent_as_it_comes(connection, transport, shelf):
    body = Body(limit=100)
    task = await exchange(connection, b"head ", body=body, length=6)
    assert transport.written == b"head "
    for piece in (b"abc", b"def"):
        body.feed(piece, ended=piece == b"def")
        await settle()
    assert transport.written == b"head abcdef"
    connection.data_received(HELLO)
    assert (await task).body == b"hello"
    assert shelf.kept == [connection]


async def test_a_body_of_unknown_length_is_sent_in_chunks(connection, transport):
    body = Body(limit=100)
    task = await exchange(connection, b"", body=body)
    body.feed(b"abc", ended=False)
    body.feed(b"x" * 17, ended=True)
    await settle()
    assert transport.written == b"3\r\nabc\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"
    connection.data_received(HELLO)
    await task


async def test_a_slow_backend_stops_the_sending(connection, transport):
    credited: list[int] = []
    body = Body(limit=100, consumed=credited.append)
    connection.pause_writing()
    task = await exchange(connection, b"", body=body, length=6)
    body.feed(b"abc", ended=False)
    body.feed(b"def", ended=True)
    await settle()
    assert (transport.written, credited) == (b"abc", [3])
    connection.resume_writing()
    await settle()
    assert (transport.written, credited) == (b"abcdef", [3, 3])
    connection.data_received(HELLO)
    await task


async def test_an_early_reply_is_delivered_and_the_rest_of_the_body_is_not_sent(connection, transport, shelf):
    body = Body(limit=100)
    task = await exchange(connection, b"", body=body, length=6)
    body.feed(b"abc", ended=False)
    await settle()
    connection.data_received(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
    answer = await task
    assert (answer.status, answer.body) == (413, b"no")
    body.feed(b"def", ended=True)
    await settle()
    assert transport.written == b"abc"
    assert transport.aborted
    assert shelf.kept == []


async def test_a_reply_may_begin_before_the_request_has_ended(connection, transport, shelf):
    body = Body(limit=100)
    task = await exchange(connection, b"", body=body, length=3)
    connection.data_received(CHUNKED + b"1\r\na\r\n")
    reply = (await task).body
    body.feed(b"abc", ended=True)
    await settle()
    connection.data_received(b"1\r\nb\r\n0\r\n\r\n")
    assert b"".join([piece async for piece in reply]) == b"ab"
    assert shelf.kept == [connection]


@pytest.mark.parametrize(("sent", "wrong"), [(b"abcd", "longer than"), (b"ab", "ended after 2 of the 3")])
async def test_a_body_of_another_length_than_announced_never_reaches_the_next_request(
    connection, transport, sent, wrong
):
    body = Body(limit=100)
    task = await exchange(connection, b"", body=body, length=3)
    body.feed(sent, ended=True)
    with pytest.raises(Refused, match=wrong) as refused:
        await task
    assert refused.value.reason is Reason.BAD_REQUEST
    assert transport.written in (b"", b"ab")
    assert transport.aborted


async def test_a_request_is_not_whole_before_its_body_is_known_to_have_ended(connection, transport):
    body = Body(limit=100)
    task = await exchange(connection, b"", body=body, length=3)
    body.feed(b"ab", ended=False)
    body.feed(b"c", ended=False)
    await settle()
    assert transport.written == b"ab"
    body.feed(b"d", ended=True)
    with pytest.raises(Refused, match="longer than"):
        await task
    assert transport.written == b"ab"


async def test_a_client_that_gives_up_its_body_ends_the_exchange(connection, transport):
    body = Body(limit=100)
    task = await exchange(connection, b"", body=body)
    body.fail(Refused(Reason.CANCELLED))
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.CANCELLED
    assert transport.aborted


async def test_a_body_that_never_ends_meets_the_deadline(connection, transport):
    task = await exchange(connection, b"", body=Body(limit=100), deadline=monotonic() + SOON)
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE
