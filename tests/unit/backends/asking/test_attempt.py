# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from backends.asking.attempt import Attempt, Copy
from backends.body import Body
from backends.messages import Reply
from backends.outcome import Ending
from inferlane.errors import Reason, Refused
from tests.fakes.asked import AskedEndpoint, AskedPlace, FakePieces
from tests.fakes.endpoints import request_for, traffic_class


class Scene:
    """One endpoint that has answered with these pieces 0.5 s after it was asked, and 9.5 s before the deadline."""

    def __init__(self, *pieces: bytes | BaseException | None, streaming: bool = False) -> None:
        self.now = 100.0
        self.pieces = FakePieces(*pieces)
        self.endpoint = AskedEndpoint("a", Reply(body=self.pieces, streaming=streaming))

    async def attempt(self) -> Attempt:
        request = request_for(traffic_class(deadline_s=10.0), now=self.now)
        copy = Copy(AskedPlace(self.endpoint), request, lambda: self.now)
        self.endpoint.stamps = self.now + 0.5
        return Attempt(copy, await copy.ask(), count=1, hedged=False)

    async def read(self, attempt: Attempt) -> bytes:
        """As the walk does it: hand on, close, leave."""
        read = b""
        assert not isinstance(attempt.reply.body, bytes)
        try:
            async for piece in attempt.reply.body:
                read += piece
        except BaseException as error:
            attempt.leave(error)
            raise
        finally:
            await attempt.reply.body.aclose()
        attempt.leave()
        return read


async def test_pieces_pass_as_they_come_and_the_place_is_free_at_their_end():
    scene = Scene(b"to", b"ken")
    attempt = await scene.attempt()
    assert await scene.read(attempt) == b"token"
    assert scene.endpoint.endings == [Ending.ANSWERED]
    assert scene.endpoint.outcomes[0].latency_s == 0.5


@pytest.mark.parametrize("reason", [Reason.BACKEND_FAILED, Reason.STALLED])
async def test_a_body_that_its_endpoint_breaks_off_is_a_failure(reason):
    scene = Scene(b"to", Refused(reason), streaming=True)
    with pytest.raises(Refused):
        await scene.read(await scene.attempt())
    assert scene.endpoint.endings == [Ending.FAILED]


async def test_a_client_that_does_not_read_or_leaves_is_no_fault_of_the_endpoint():
    for error in (Refused(Reason.STALLED), asyncio.CancelledError(), ConnectionResetError()):
        scene = Scene(b"to", None, streaming=True)
        (await scene.attempt()).leave(error)
        assert scene.endpoint.endings == [Ending.ANSWERED]


async def cut_while_reading(scene: Scene, later: float) -> list[Ending]:
    attempt = await scene.attempt()
    reading = asyncio.create_task(scene.read(attempt))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    scene.now += later
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    return scene.endpoint.endings


async def test_nor_is_one_that_leaves_while_the_endpoint_is_still_at_it():
    assert await cut_while_reading(Scene(b"to", None), 1.0) == [Ending.ANSWERED]


async def test_but_a_whole_reply_that_is_not_here_by_its_deadline_is():
    assert await cut_while_reading(Scene(b"to", None), 10.0) == [Ending.TIMED_OUT]


async def test_a_token_stream_may_go_on_behind_its_deadline():
    assert await cut_while_reading(Scene(b"to", None, streaming=True), 10.0) == [Ending.ANSWERED]


async def test_closing_reaches_the_backend():
    scene = Scene(b"to")
    attempt = await scene.attempt()
    assert not isinstance(attempt.reply.body, bytes)
    await attempt.reply.body.aclose()
    attempt.leave()
    assert scene.pieces.closed == 1


async def test_a_copy_that_was_cancelled_before_it_began_says_nothing():
    endpoint = AskedEndpoint("a", None)
    copy = Copy(AskedPlace(endpoint), request_for(traffic_class(), now=100.0), lambda: 100.0)
    outcome = copy.outcome()
    assert (outcome.ending, outcome.held_s) == (Ending.CANCELLED, 0.0)
    assert repr(copy) == "<Copy at a, asking>"


async def test_its_repr_tells_who_answered_what():
    scene = Scene(b"to")
    attempt = await scene.attempt()
    assert repr(attempt) == "<Attempt 1 at a, status 200>"
    attempt.leave()
    assert repr(attempt) == "<Attempt 1 at a, status 200, left>"


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (asyncio.CancelledError(), Ending.CANCELLED),
        (Refused(Reason.DEADLINE), Ending.CANCELLED),
        (Refused(Reason.BAD_REQUEST), Ending.CANCELLED),
        (Refused(Reason.BACKEND_FAILED), Ending.FAILED),
    ],
)
async def test_a_client_that_has_not_sent_all_of_its_body_is_no_fault_of_the_endpoint(error, ending):
    """Else a few slow uploads would eject one endpoint after the other."""
    body = Body(limit=1000)
    body.feed(b"half", ended=False)
    endpoint = AskedEndpoint("a")
    request = request_for(traffic_class(deadline_s=10.0), now=100.0, body=body)
    scene = Scene()
    copy = Copy(AskedPlace(endpoint), request, lambda: scene.now)
    copy.result = error
    scene.now += 10.0
    assert copy.outcome().ending is ending
    assert copy.outcome().latency_s == (0.0 if ending is Ending.CANCELLED else 10.0)
    body.feed(b"whole", ended=True)
    assert copy.outcome().ending in (Ending.TIMED_OUT, Ending.BLAMELESS, Ending.FAILED)
