# SPDX-License-Identifier: Apache-2.0
"""A token stream is never cut open by a comment, never endless in silence, and never cleanly ended when it is not."""

from __future__ import annotations

from itertools import pairwise
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.remote.sse import KEEPALIVE, EventStream, said_done
from inferlane.errors import Reason, Refused
from qos.traffic_class import StreamPromise

PROMISE = StreamPromise(stall_s=10.0, keepalive_s=4.0)
ONE, TWO, DONE = b'data: {"n": 1}\n\n', b'data: {"n": 2}\n\n', b"data: [DONE]\n\n"


class Scripted:
    """A reply's body whose pieces the test says; None: nothing came in time."""

    def __init__(self, *pieces: bytes | Refused | None) -> None:
        self.pieces = list(pieces)
        self.asked_until: list[float] = []
        self.closed = False

    async def next_until(self, until: float) -> bytes | None:
        self.asked_until.append(until)
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Refused):
            raise piece
        return piece

    async def aclose(self) -> None:
        self.closed = True


def stream(*pieces: bytes | Refused | None, says_done: bool = True) -> tuple[EventStream, Scripted]:
    body = Scripted(*pieces)
    return EventStream(body, PROMISE, says_done=says_done), body


async def read(events: EventStream) -> tuple[list[bytes], Refused | None]:
    """What came, and how it ended."""
    came: list[bytes] = []
    try:
        async for piece in events:
            came.append(piece)  # noqa: PERF401  the comprehension would lose what came before the end
    except Refused as refused:
        return came, refused
    return came, None


async def test_each_piece_goes_on_as_it_came():
    events, _ = stream(ONE, TWO[:5], TWO[5:], DONE)
    assert await read(events) == ([ONE, TWO[:5], TWO[5:], DONE], None)


async def test_a_silence_between_events_is_filled_with_comments_and_then_over():
    events, body = stream(ONE, None, None, None)
    before = monotonic()
    came, refused = await read(events)
    assert came == [ONE, KEEPALIVE, KEEPALIVE]
    assert refused is not None
    assert refused.reason is Reason.STALLED
    assert body.closed
    silent_since = body.asked_until[1] - PROMISE.keepalive_s
    assert before <= silent_since <= monotonic()
    assert [until - silent_since for until in body.asked_until[1:]] == pytest.approx([4.0, 8.0, 10.0])


async def test_a_silence_within_an_event_is_not_filled():
    events, body = stream(ONE[:7], None)
    came, refused = await read(events)
    assert (came, refused and refused.reason) == ([ONE[:7]], Reason.STALLED)
    assert body.asked_until[1] - monotonic() > PROMISE.keepalive_s


async def test_a_piece_ends_the_silence():
    events, body = stream(ONE, None, TWO, None, DONE)
    assert await read(events) == ([ONE, KEEPALIVE, TWO, KEEPALIVE, DONE], None)
    assert not body.closed
    assert body.asked_until[3] - monotonic() <= PROMISE.keepalive_s  # counted anew, not from the first silence


@pytest.mark.parametrize("last", [ONE, b"data: [DONE", b'data: {"text": "data: [DONE]"}\n\n', b"xdata: [DONE]\n\n"])
async def test_a_stream_that_ends_without_done_is_broken(last):
    events, _ = stream(ONE, last)
    came, refused = await read(events)
    assert came == [ONE, last]
    assert refused is not None
    assert refused.reason is Reason.BACKEND_FAILED


async def test_another_kind_of_stream_ends_as_it_likes():
    events, _ = stream(ONE, says_done=False)
    assert await read(events) == ([ONE], None)


async def test_what_broke_off_says_so():
    events, _ = stream(ONE, Refused(Reason.BACKEND_FAILED, "gone"))
    came, refused = await read(events)
    assert (came, refused and refused.detail) == ([ONE], "gone")


async def test_letting_go_closes_what_is_behind_it():
    events, body = stream(ONE)
    await events.aclose()
    assert body.closed


@pytest.mark.parametrize(
    "end",
    [
        DONE,
        ONE + DONE,
        b"data:[DONE]\n\n",
        b"data: [DONE]",
        b"data: [DONE]\r\n\r\n",
        b"\n\ndata: [DONE]\n\n\n",
        b"event: done\ndata: [DONE]\nid: 7\n\n",
        DONE + b": ping\n\n",
    ],
)
def test_how_servers_say_that_it_is_done(end):
    assert said_done(end)


def events_of(text: bytes) -> list[list[bytes]]:
    """The events as a client reads them: the lines between empty ones, less comments."""
    lines = text.replace(b"\r\n", b"\n").split(b"\n")
    events: list[list[bytes]] = [[]]
    for line in lines:
        if not line:
            events.append([])
        elif not line.startswith(b":"):
            events[-1].append(line)
    return [each for each in events if each]


@st.composite
def cut(draw: st.DrawFn) -> list[bytes | None]:
    """A stream in pieces cut anywhere, with silences shorter than a stall between them."""
    ends = draw(st.sampled_from([b"\n\n", b"\r\n\r\n"]))
    lines = draw(st.lists(st.sampled_from([b"data: a", b"data: b\ndata: c", b"event: x\ndata: {}"]), min_size=1))
    text = b"".join(line + ends for line in lines) + b"data: [DONE]" + ends
    at = sorted(draw(st.sets(st.integers(1, len(text) - 1), max_size=8)))
    pieces: list[bytes | None] = []
    for start, end in pairwise([0, *at, len(text)]):
        pieces.append(text[start:end])
        # one silence may be a comment's; the second of an event that is not whole would be the stall
        if text[:end].endswith(ends):
            pieces += [None] * draw(st.integers(0, 2))
    return pieces


@given(cut())
async def test_comments_never_change_what_a_client_reads(pieces):
    events, _ = stream(*pieces)
    came, refused = await read(events)
    assert refused is None
    text = b"".join(piece for piece in pieces if piece)
    assert events_of(b"".join(came)) == events_of(text)
    assert b"".join(piece for piece in came if piece != KEEPALIVE) == text
