# SPDX-License-Identifier: Apache-2.0
"""The clock of a token stream; its walk is in test_pipeline_streams.py."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from backends.messages import Pieces
from backends.remote.sse import KEEPALIVE
from inferlane.errors import Reason
from proxy.arrival import Answered
from proxy.walk.deadlines import Deadline, Deadlines
from proxy.walk.token_stream import TokenStream
from qos.traffic_class import StreamPromise
from tests.fakes.answered import answered_request
from tests.fakes.walk import pieces


class Recorder:
    """The part of the telemetry that streams use."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def first_piece(self, answered: Answered, seconds: float) -> None:
        self.told.append(("first", seconds))

    def piece_sent(self, answered: Answered, gap_s: float) -> None:
        self.told.append(("gap", gap_s))


class Streaming:
    """A stream whose clock advances by a second at each look. The request was received at 100."""

    def __init__(self, body: Pieces, limit: Deadline, *, total_s: float | None = None) -> None:
        self.now = 100.0
        self.recorder = Recorder()
        self.answered = answered_request()
        promise = StreamPromise(stall_s=15.0, total_s=total_s)
        self.answered.traffic_class = replace(self.answered.traffic_class, stream=promise)
        self.stream = TokenStream(body, self.answered, limit, self.recorder, clock=self.tick)  # type: ignore[arg-type]

    def tick(self) -> float:
        self.now += 1.0
        return self.now


async def test_the_first_piece_and_the_gaps_are_told() -> None:
    with Deadlines(lambda: 100.0).until(inf) as limit:
        each = Streaming(pieces(b"1", b"2", b"3"), limit)
        assert [piece async for piece in each.stream] == [b"1", b"2", b"3"]
    assert each.recorder.told == [("first", 1.0), ("gap", 1.0), ("gap", 1.0)]
    assert each.answered.pieces == 3


async def test_a_comment_that_keeps_the_client_waiting_is_no_token() -> None:
    with Deadlines(lambda: 100.0).until(inf) as limit:
        each = Streaming(pieces(KEEPALIVE, b"1", KEEPALIVE, b"2"), limit)
        assert len([piece async for piece in each.stream]) == 4
    assert each.recorder.told == [("first", 2.0), ("gap", 2.0)]
    assert each.answered.pieces == 2


async def test_the_client_has_the_stall_time_and_the_backend_what_is_left_of_the_total() -> None:
    with Deadlines(lambda: 100.0).until(inf) as limit:
        each = Streaming(pieces(b"1", b"2"), limit, total_s=10.0)
        assert limit.when == 110.0
        await anext(each.stream)
        assert limit.when == 110.0  # sooner than the stall at 116
        assert repr(each.stream) == "<TokenStream 1 pieces, client next>"
        assert each.stream.late().reason is Reason.CANCELLED
        limit.when = inf


async def test_without_a_total_only_the_client_is_bounded() -> None:
    with Deadlines(lambda: 100.0).until(inf) as limit:
        each = Streaming(pieces(b"1"), limit)
        assert limit.when == inf
        await anext(each.stream)
        assert limit.when == 116.0
        with pytest.raises(StopAsyncIteration):
            await anext(each.stream)
        assert limit.when == inf


async def test_a_stream_that_took_too_long_as_a_whole_is_told_so() -> None:
    with Deadlines(lambda: 100.0).until(inf) as limit:
        each = Streaming(pieces(b"1"), limit, total_s=10.0)
        refusal = each.stream.late()
        assert (refusal.reason, refusal.detail) == (
            Reason.DEADLINE,
            "the stream took longer than the 10 s of its class",
        )
        limit.when = inf
        await each.stream.aclose()
