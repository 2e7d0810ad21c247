# SPDX-License-Identifier: Apache-2.0
"""A body in pieces: read to its end, up to a bound, or let go, it never leaves its connection behind."""

from __future__ import annotations

from math import inf

import pytest

from backends.remote.reply_body import ReplyBody
from inferlane.errors import Reason, Refused


class Line:
    """The connection's part; None: nothing came in time."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = list(pieces)
        self.closed = 0

    @property
    def first(self) -> bytes:
        return (self.pieces[0] if self.pieces else None) or b""

    async def next_piece(self, until: float) -> bytes | None:
        if self.closed:
            raise Refused(Reason.BACKEND_FAILED)
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        self.closed += 1


async def test_it_is_read_to_its_end_and_lets_go_of_nothing():
    line = Line(b"a", b"b")
    body = ReplyBody(line)
    assert body.first == b"a"
    assert [piece async for piece in body] == [b"a", b"b"]
    assert (await body.next_until(inf), body.first, repr(body)) == (b"", b"", "<ReplyBody over>")
    await body.aclose()
    assert line.closed == 0


async def test_a_silence_is_not_its_end():
    line = Line(None, b"a")
    body = ReplyBody(line)
    assert await body.next_until(1.0) is None
    assert await body.next_until(2.0) == b"a"


async def test_what_fails_closes_it_once():
    line = Line(b"a")
    body = ReplyBody(line)
    line.closed = 1
    with pytest.raises(Refused):
        await anext(body)
    body.discard()
    assert line.closed == 2
    assert [piece async for piece in body] == []


async def test_dropped_unread_it_closes():
    line = Line(b"a")
    body = ReplyBody(line)
    del body
    assert line.closed == 1


async def test_the_whole_of_it_up_to_a_bound():
    assert await ReplyBody(Line(b"abc", b"de")).read_all(5) == b"abcde"
    line = Line(b"abc", b"def")
    with pytest.raises(Refused, match="longer than 5 bytes"):
        await ReplyBody(line).read_all(5)
    assert line.closed == 1
