# SPDX-License-Identifier: Apache-2.0
"""Token streams over HTTP/3: each piece goes out by itself, and a broken one says why before it is reset."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aioquic.h3.connection import ErrorCode
from aioquic.h3.events import DataReceived
from aioquic.quic.events import StreamReset

from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Arrival
from proxy.listeners import http3
from proxy.listeners.http3 import Http3Session
from proxy.protocols.answers import error_event
from tests.fakes.quic import Http3Client
from tests.fakes.walk import Answer, Conversation, FakeWalk, pieces

STALLED = Refused(Reason.STALLED, "the backend said nothing more for 15 s")


class Talk(Conversation):
    def __init__(self, tmp_path: Path, answer: Answer) -> None:
        self.walk = FakeWalk(answer)
        super().__init__(
            tmp_path,
            "h3",
            lambda peer: Http3Session(peer, self.walk, listener="main", max_body=1 << 20, clock=lambda: 1.0),
        )
        self.client = Http3Client(self.pair)

    def ask(self, method: bytes = b"POST") -> int:
        stream_id = self.pair.client.get_next_available_stream_id()
        path = b"/v1/chat/completions" if method == b"POST" else b"/v1/models"
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path)]
        self.client.http.send_headers(stream_id, [*head, (b"x-request-id", b"r-1")], end_stream=True)
        return stream_id

    def came(self) -> tuple[list[bytes], list[int]]:
        """Pieces of bodies, and the codes of resets, that came since the last look."""
        resets = [each.error_code for each in self.pair.client_events if isinstance(each, StreamReset)]
        data = [each.data for each in self.client.events() if isinstance(each, DataReceived) and each.data]
        return data, resets


def breaking_off(*, streaming: bool) -> Answer:
    async def answer(_: Arrival) -> Reply:
        return Reply(body=pieces(b"data: 1\n\n", error=STALLED), streaming=streaming)

    return answer


async def test_each_piece_goes_out_when_it_is_there(tmp_path: Path) -> None:
    made: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(_: Arrival) -> Reply:
        async def body() -> AsyncGenerator[bytes, None]:
            while piece := await made.get():
                yield piece

        return Reply(body=body(), streaming=True)

    talk = Talk(tmp_path, answer)
    talk.ask()
    for piece in (b"data: 1\n\n", b": keep-alive\n\n", b"data: [DONE]\n\n"):
        made.put_nowait(piece)
        await talk.run()
        assert talk.came() == ([piece], [])
    made.put_nowait(b"")
    await talk.run()
    assert talk.session.idle


async def test_a_broken_stream_says_why_and_is_reset(tmp_path: Path) -> None:
    talk = Talk(tmp_path, breaking_off(streaming=True))
    talk.ask()
    await talk.run(12)
    data, resets = talk.came()
    assert b"".join(data) == b"data: 1\n\n" + error_event(STALLED, "r-1")
    assert resets == [ErrorCode.H3_INTERNAL_ERROR]
    assert talk.session.idle


async def test_any_other_broken_body_is_only_reset(tmp_path: Path) -> None:
    talk = Talk(tmp_path, breaking_off(streaming=False))
    talk.ask()
    await talk.run(12)
    data, resets = talk.came()
    assert b"error" not in b"".join(data)
    assert resets == [ErrorCode.H3_INTERNAL_ERROR]


async def test_a_reply_without_a_body_has_no_last_words(tmp_path: Path) -> None:
    talk = Talk(tmp_path, breaking_off(streaming=True))
    talk.ask(b"HEAD")
    await talk.run(12)
    assert talk.came() == ([], [ErrorCode.H3_INTERNAL_ERROR])


async def test_a_client_that_does_not_listen_is_reset_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http3, "LAST_WORDS_S", 0.01)
    talk = Talk(tmp_path, breaking_off(streaming=True))
    talk.ask()
    await talk.run(1)
    async with asyncio.timeout(10):
        while not talk.session.idle:  # and no packet comes from the client any more
            await asyncio.sleep(0.005)
    await talk.run(12)
    assert talk.came()[1] == [ErrorCode.H3_INTERNAL_ERROR]
