# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from backends.remote.connection import MOST_BUFFERED, MOST_UNSENT, READ, WHOLE_REPLY, Connection, Stale
from backends.remote.reply_body import ReplyBody
from inferlane.errors import Reason, Refused
from tests.fakes.asking import SOON, settle
from tests.fakes.transport import FakeTransport, exchange

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


async def test_a_small_reply_comes_whole_and_the_connection_is_kept(connection, transport, shelf):
    before = monotonic()
    task = await exchange(connection, b"POST and body")
    assert (transport.written, transport.writes) == (b"POST and body", 1)
    assert not connection.usable
    connection.data_received(HELLO)
    answer = await task
    assert (answer.status, answer.body) == (200, b"hello")
    assert before <= answer.first_byte <= monotonic()
    assert connection.usable
    assert shelf.kept == [connection]


async def test_a_small_reply_in_pieces_still_comes_whole(connection, transport):
    task = await exchange(connection)
    for byte in HELLO:
        assert not task.done()
        connection.data_received(bytes([byte]))
    assert (await task).body == b"hello"


async def test_one_connection_answers_request_after_request(connection, transport, shelf):
    for _ in range(3):
        task = await exchange(connection)
        connection.data_received(HELLO)
        assert (await task).body == b"hello"
    assert shelf.kept == [connection] * 3


async def test_a_chunked_reply_that_is_there_comes_whole(connection, transport, shelf):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
    assert (await task).body == b"hello"
    assert shelf.kept == [connection]


async def test_a_long_reply_comes_in_pieces(connection, transport, shelf):
    task = await exchange(connection)
    connection.data_received(OK + b"content-length: %d\r\n\r\nab" % (WHOLE_REPLY + 1))
    answer = await task
    assert isinstance(answer.body, ReplyBody)
    assert await anext(answer.body) == b"ab"
    connection.data_received(b"x" * (WHOLE_REPLY - 1))
    assert shelf.kept == []
    assert [len(piece) async for piece in answer.body] == [WHOLE_REPLY - 1]
    assert shelf.kept == [connection]
    assert [piece async for piece in answer.body] == []


async def test_a_head_alone_is_no_answer_yet(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED)
    await settle()
    assert not task.done()
    connection.data_received(b"3\r\nabc\r\n")
    assert (await task).body.first == b"abc"


async def test_each_token_of_a_stream_comes_when_it_is_there(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"1\r\n0\r\n")
    body = (await task).body
    assert await anext(body) == b"0"
    for token in (b"one", b"two"):
        waiting = asyncio.ensure_future(anext(body))
        await settle()
        assert not waiting.done()
        connection.data_received(b"3\r\n%b\r\n" % token)
        assert await waiting == token


async def test_a_slow_client_stops_the_reading(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"1\r\n0\r\n")
    body = (await task).body
    assert await anext(body) == b"0"
    half = b"%x\r\n%b\r\n" % (MOST_BUFFERED // 2, b"x" * (MOST_BUFFERED // 2))
    connection.data_received(half)
    connection.data_received(half)
    assert transport.reading
    connection.data_received(half)
    assert not transport.reading
    assert len(await anext(body)) == MOST_BUFFERED // 2 * 3
    assert transport.reading


async def test_a_reply_that_ends_with_the_connection(connection, transport, shelf):
    task = await exchange(connection)
    connection.data_received(OK + b"\r\nab")
    body = (await task).body
    connection.data_received(b"cd")
    connection.eof_received()
    assert [piece async for piece in body] == [b"abcd"]
    assert shelf.kept == []
    assert transport.aborted


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_reply_that_breaks_off_in_the_middle_of_its_body(connection, transport, error):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    body = (await task).body
    connection.connection_lost(error)
    assert await anext(body) == b"abc"
    with pytest.raises(Refused, match="before its reply was complete") as refused:
        await anext(body)
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)


async def test_a_reset_does_not_end_a_body_in_good_order(connection, transport):
    task = await exchange(connection)
    connection.data_received(OK + b"\r\nab")
    body = (await task).body
    connection.connection_lost(ConnectionResetError())
    assert await anext(body) == b"ab"
    with pytest.raises(Refused):
        await anext(body)


async def test_garbage_in_the_middle_of_a_body(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"1\r\n0\r\n")
    body = (await task).body
    assert await anext(body) == b"0"
    waiting = asyncio.ensure_future(anext(body))
    await settle()
    connection.data_received(b"zz\r\n")
    with pytest.raises(Refused, match=r"not HTTP/1\.1"):
        await waiting


@pytest.mark.parametrize("cut", [b"", OK, OK + b"content-length: 5\r\n\r\nhell"])
async def test_a_connection_closed_before_the_reply_was_complete(connection, transport, shelf, cut):
    task = await exchange(connection)
    if cut:
        connection.data_received(cut)
    connection.eof_received()
    with pytest.raises(Refused, match="closed the connection") as refused:
        await task
    assert not isinstance(refused.value, Stale)
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)
    await settle()
    assert (shelf.kept, shelf.gone) == ([], [connection])


async def test_a_kept_connection_closed_without_a_byte_is_stale(connection, transport):
    task = await exchange(connection)
    connection.data_received(HELLO)
    await task
    task = await exchange(connection)
    connection.connection_lost(BrokenPipeError())
    with pytest.raises(Stale):
        await task


async def test_a_kept_connection_closed_after_a_byte_is_not_stale(connection, transport):
    task = await exchange(connection)
    connection.data_received(HELLO)
    await task
    task = await exchange(connection)
    connection.data_received(b"H")
    connection.connection_lost(None)
    with pytest.raises(Refused) as refused:
        await task
    assert not isinstance(refused.value, Stale)


@pytest.mark.parametrize("reply", [b"", OK, OK + b"content-length: 5\r\n\r\nhell"])
async def test_a_deadline_ends_the_waiting_and_the_connection(connection, transport, reply):
    task = await exchange(connection, deadline=monotonic() + SOON)
    if reply:
        connection.data_received(reply)
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE
    assert transport.aborted


async def test_a_deadline_ends_a_body_that_stalls(connection, transport):
    task = await exchange(connection, deadline=monotonic() + SOON)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    pieces = []
    with pytest.raises(Refused) as refused:
        async for piece in (await task).body:
            pieces.append(piece)  # noqa: PERF401  the comprehension would lose what came before the end
    assert pieces == [b"abc"]
    assert refused.value.reason is Reason.DEADLINE


async def test_an_earlier_deadline_counts_after_a_later_one(connection, transport):
    task = await exchange(connection, deadline=monotonic() + 60)
    connection.data_received(HELLO)
    await task
    task = await exchange(connection, deadline=monotonic() + SOON)
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE


async def test_the_deadline_of_an_answered_request_means_nothing_to_the_next(connection, transport, shelf):
    first, passed = monotonic() + SOON, asyncio.Event()
    task = await exchange(connection, deadline=first)
    connection.data_received(HELLO)
    await task
    task = await exchange(connection)
    asyncio.get_running_loop().call_later(2 * SOON, passed.set)
    await passed.wait()
    assert not task.done()
    connection.data_received(HELLO)
    assert (await task).body == b"hello"


async def test_an_idle_connection_outlives_the_deadlines_it_served(connection, transport):
    passed = asyncio.Event()
    task = await exchange(connection, deadline=monotonic() + SOON)
    connection.data_received(HELLO)
    await task
    asyncio.get_running_loop().call_later(2 * SOON, passed.set)
    await passed.wait()
    assert connection.usable


async def test_a_reply_that_waits_for_its_client_has_met_its_deadline(connection, transport, shelf):
    passed = asyncio.Event()
    task = await exchange(connection, deadline=monotonic() + SOON)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    body = (await task).body
    connection.data_received(b"0\r\n\r\n")
    asyncio.get_running_loop().call_later(2 * SOON, passed.set)
    await passed.wait()
    assert [piece async for piece in body] == [b"abc"]
    assert shelf.kept == [connection]


async def test_a_cancelled_request_takes_its_connection_along(connection, transport, shelf):
    task = await exchange(connection)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.aborted
    assert shelf.kept == []


async def test_cancelled_in_the_moment_of_its_reply_it_leaves_the_connection_to_the_next(connection, transport, shelf):
    task = await exchange(connection)
    task.cancel()
    connection.data_received(HELLO)
    assert shelf.kept == [connection]
    with pytest.raises(asyncio.CancelledError):
        await task
    assert connection.usable


async def test_cancelled_in_the_moment_of_the_first_byte_it_closes(connection, transport):
    task = await exchange(connection)
    task.cancel()
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.aborted


async def test_a_cancelled_reader_closes(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    body = (await task).body
    assert await anext(body) == b"abc"
    waiting = asyncio.ensure_future(anext(body))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert transport.aborted


async def test_a_body_let_go_closes(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    body = (await task).body
    await body.aclose()
    assert transport.aborted
    assert [piece async for piece in body] == []


async def test_a_body_forgotten_closes(connection, transport):
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    await task
    assert not transport.aborted
    del task
    await settle()  # the loop's own reference to it goes at the next turn
    assert transport.aborted


@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"])
async def test_a_connection_that_ends_with_its_reply(connection, transport, shelf, head):
    task = await exchange(connection)
    surplus = b"" if head else b"HTTP/1.1 200 OK\r\n"
    connection.data_received(OK + head + b"content-length: 1\r\n\r\na" + surplus)
    assert (await task).body == b"a"
    assert transport.aborted
    assert shelf.kept == []


async def test_bytes_that_nobody_asked_for_end_an_idle_connection(connection, transport, shelf):
    connection.data_received(HELLO)
    assert transport.aborted
    assert not connection.usable
    await settle()
    assert shelf.gone == [connection]


async def test_what_is_in_flight_fails_when_the_owner_closes(connection, transport):
    task = await exchange(connection)
    connection.close(Refused(Reason.DRAINING))
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DRAINING


async def test_its_repr_tells_its_condition(connection, transport):
    assert repr(connection) == "<Connection realtime idle, exchange 0, <ReplyReader head, 0 bytes unread>>"
    task = await exchange(connection)
    connection.data_received(CHUNKED + b"3\r\nabc\r\n")
    await task
    assert repr(connection) == "<Connection realtime answering, exchange 1, <ReplyReader body, 3 bytes unread>>"


async def test_an_empty_reply_that_ends_with_the_connection_is_whole(connection, transport):
    task = await exchange(connection)
    connection.data_received(OK + b"\r\n")
    connection.eof_received()
    assert (await task).body == b""


async def test_what_was_read_is_taken_out_of_the_room_that_all_share(shelf):
    room = memoryview(bytearray(READ))
    first, second = Connection(shelf, "realtime", None, room), Connection(shelf, "batch", None, room)
    for each in (first, second):
        FakeTransport(each)
    tasks = [await exchange(each) for each in (first, second)]
    for each, body in ((first, b"12345"), (second, b"67890")):
        said = OK + b"content-length: 5\r\n\r\n" + body
        each.get_buffer(-1)[: len(said)] = said
        each.buffer_updated(len(said))
    assert [(await task).body for task in tasks] == [b"12345", b"67890"]
    assert len(first.get_buffer(-1)) == READ


async def test_an_upload_s_unsent_bytes_are_bounded(connection, transport):
    assert transport.most_unsent == MOST_UNSENT
