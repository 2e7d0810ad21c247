# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.body import Body
from backends.unread import Unread
from inferlane.errors import Reason, Refused
from tests.fakes.asking import settle


async def test_a_body_that_is_there_as_a_whole():
    body = Body.of(b"abc")
    assert body.complete
    assert await body.read_all() == b"abc"
    assert await body.read() == b""
    assert await Body.of(b"").read_all() == b""


async def test_a_reader_waits_for_what_is_not_there_yet():
    body = Body(limit=10)
    reading = asyncio.ensure_future(body.read_all())
    for piece, ended in ((b"ab", False), (b"", False), (b"cd", True)):
        await settle()
        assert not reading.done()
        body.feed(piece, ended=ended)
    assert await reading == b"abcd"


async def test_an_end_without_bytes_ends_the_reading():
    body = Body(limit=10)
    body.feed(b"ab", ended=False)
    assert not body.complete
    reading = asyncio.ensure_future(body.read_all())
    await settle()
    body.feed(b"", ended=True)
    assert body.complete
    assert await reading == b"ab"


async def test_what_is_read_is_credited_to_the_sender():
    credited: list[int] = []
    body = Body(limit=10, consumed=credited.append)
    body.feed(b"abc", ended=False)
    body.feed(b"de", ended=True)
    assert credited == []
    assert await body.read() == b"abc"
    assert credited == [3]
    assert await body.read_all() == b"de"
    assert credited == [3, 2]


async def test_past_its_limit_nothing_is_kept_and_everything_credited():
    credited: list[int] = []
    body = Body(limit=4, consumed=credited.append)
    body.feed(b"abc", ended=False)
    body.feed(b"de", ended=False)
    body.feed(b"fgh", ended=True)
    assert sum(credited) == 8
    assert not body.complete
    with pytest.raises(Refused, match="4 bytes allowed") as refused:
        await body.read()
    assert refused.value.reason is Reason.TOO_LARGE
    assert repr(body) == "<Body failed, 8 bytes received, 0 unread>"


async def test_a_failure_reaches_a_reader_that_waits_and_the_first_one_counts():
    body = Body(limit=10)
    reading = asyncio.ensure_future(body.read())
    await settle()
    body.fail(Refused(Reason.CANCELLED))
    body.fail(Refused(Reason.INTERNAL))
    with pytest.raises(Refused) as refused:
        await reading
    assert refused.value.reason is Reason.CANCELLED


async def test_gathering_waits_for_the_whole_and_credits_what_waits():
    credited: list[int] = []
    body = Body(limit=10, consumed=credited.append)
    gathering = asyncio.ensure_future(body.gather(8))
    for piece in (b"ab", b"cd"):
        body.feed(piece, ended=False)
        await settle()
    assert not gathering.done()
    assert credited == [2, 2]
    body.feed(b"", ended=True)
    await gathering
    assert body.complete
    assert await body.read_all() == b"abcd"
    assert credited == [2, 2]


@pytest.mark.parametrize("declared", [None, 20])
async def test_gathering_does_not_wait_for_a_long_body(declared):
    body = Body(limit=100, declared=declared)
    gathering = asyncio.ensure_future(body.gather(8))
    await settle()
    assert gathering.done() == (declared == 20)
    body.feed(b"123456789", ended=False)
    await gathering
    body.feed(b"0", ended=True)
    assert await body.read_all() == b"1234567890"


async def test_gathering_what_fails_raises_why():
    credited: list[int] = []
    body = Body(limit=10, consumed=credited.append)
    body.feed(b"abc", ended=False)
    body.fail(Refused(Reason.BAD_REQUEST))
    with pytest.raises(Refused):
        await body.gather(8)
    assert credited == [3]


async def test_a_gathered_body_that_fails_later_is_credited_once():
    credited: list[int] = []
    body = Body(limit=20, consumed=credited.append)
    body.feed(b"123456789", ended=False)
    await body.gather(8)
    body.feed(b"0", ended=False)
    body.fail(Refused(Reason.CANCELLED))
    assert sum(credited) == body.received == 10


@given(st.lists(st.binary(max_size=20)))
def test_every_byte_comes_once_and_in_order(pieces):
    async def read_back() -> None:
        credited: list[int] = []
        body = Body(limit=1000, consumed=credited.append)
        reading = asyncio.ensure_future(body.read_all())
        for piece in pieces:
            body.feed(piece, ended=False)
            await asyncio.sleep(0)
        body.feed(b"", ended=True)
        assert await reading == b"".join(pieces)
        assert sum(credited) == body.received == sum(map(len, pieces))

    asyncio.run(read_back())


async def test_what_nobody_has_read_counts_until_it_is_read():
    unread = Unread(10)
    body = Body(limit=20)
    body.feed(b"abc", ended=False)
    body.count_in(unread)
    body.feed(b"de", ended=False)
    assert unread.bytes == 5
    assert await body.read() == b"abc"
    assert unread.bytes == 2
    body.feed(b"f", ended=True)
    assert await body.read_all() == b"def"
    assert unread.bytes == 0
    assert body.drained


async def test_what_was_gathered_still_counts():
    unread = Unread(10)
    body = Body(limit=20)
    body.count_in(unread)
    gathering = asyncio.ensure_future(body.gather(4))
    body.feed(b"ab", ended=False)
    await settle()
    body.feed(b"cd", ended=True)
    await gathering
    assert unread.bytes == 4
    assert await body.read_all() == b"abcd"
    assert unread.bytes == 0


@pytest.mark.parametrize("gathers", [False, True])
async def test_what_is_dropped_counts_no_more(gathers: bool):
    unread = Unread(10)
    body = Body(limit=20)
    body.count_in(unread)
    body.feed(b"ab", ended=False)
    if gathers:
        gathering = asyncio.ensure_future(body.gather(4))
        await settle()
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)
    body.fail(Refused(Reason.CANCELLED, "gone"))
    assert unread.bytes == 0
    body.feed(b"cd", ended=True)
    assert unread.bytes == 0


@pytest.mark.parametrize("late", [False, True])
async def test_a_body_for_which_there_is_no_room_is_refused_and_credited(late: bool):
    unread = Unread(10)
    credited: list[int] = []
    others = Body.of(b"12345678")
    others.count_in(unread)
    body = Body(limit=20, consumed=credited.append)
    if late:
        body.feed(b"abc", ended=False)
    body.count_in(unread)
    if not late:
        body.feed(b"abc", ended=False)
    with pytest.raises(Refused) as raised:
        await body.read()
    assert raised.value.reason is Reason.QUEUE_FULL
    assert raised.value.retry_after_s
    assert sum(credited) == 3
    body.feed(b"de", ended=True)
    assert sum(credited) == 5
    assert unread.bytes == 8
    assert await others.read_all() == b"12345678"


@given(st.lists(st.one_of(st.binary(max_size=6), st.sampled_from(["read", "fail"])), max_size=20))
def test_the_account_is_what_is_unread_whatever_happens(steps: list[bytes | str]):
    unread = Unread(12)
    body = Body(limit=40)

    def unread_bytes() -> int:
        return int(repr(body).split(", ")[2].split(" ")[0])

    async def story() -> None:
        body.count_in(unread)
        for step in steps:
            if isinstance(step, bytes):
                body.feed(step, ended=False)
            elif step == "fail":
                body.fail(Refused(Reason.CANCELLED, "gone"))
            elif unread_bytes():
                await body.read()
            assert unread.bytes == unread_bytes() <= 12

    asyncio.run(story())
