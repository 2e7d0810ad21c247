# SPDX-License-Identifier: Apache-2.0
"""The walk of OpenAI-compatible requests and of token streams, and the end of sheddable work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from backends.body import Body
from backends.messages import Api, Reply, Request
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Operation
from tests.fakes.one_pool import DEFAULT, SHEDDABLE, Set, answer, stuck
from tests.fakes.walk import RecordingResponder, arrival, pieces

CHAT = {"path": "/v1/chat/completions", "operation": Operation.OPENAI, "model": ""}
ASKED = b'{"model":"m","stream":true}'


class Reading(RecordingResponder):
    """A client that reads a reply to its end, `pause_s` for each piece."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__()
        self.pause_s = pause_s
        self.read: list[bytes] = []

    async def reply(self, reply: Reply, answered: Answered) -> None:
        await super().reply(reply, answered)
        if isinstance(reply.body, bytes):
            self.read.append(reply.body)
            return
        async for piece in reply.body:
            self.read.append(piece)
            await asyncio.sleep(self.pause_s)


async def tokens(request: Request) -> Reply:
    return Reply(body=pieces(b"data: 1\n\n", b"data: 2\n\n"), streaming=True)


async def ask(walk: Set, responder: RecordingResponder, body: bytes | Body, **changes: object) -> None:
    await walk.pipeline(arrival(body, **(CHAT | changes)), responder)


# OpenAI-compatible requests


async def test_a_request_names_its_model_in_its_body_and_gets_its_class_by_it() -> None:
    seen: list[Request] = []

    async def backend(request: Request) -> Reply:
        seen.append(request)
        return Reply(body=await request.body.read_all())

    walk, client = Set(backend, api=Api.OPENAI), Reading()
    await ask(walk, client, b'{"model":"cheap","messages":[]}')
    assert client.read == [b'{"model":"cheap","messages":[]}']
    assert client.classes == [SHEDDABLE]
    (request,) = seen
    assert (request.model, request.path, request.streaming) == ("cheap", "/v1/chat/completions", False)
    assert request.deadline - request.timeline.received == SHEDDABLE.deadline_s


async def test_a_body_that_comes_in_pieces_is_read_before_it_has_a_class() -> None:
    walk, client, body = Set(answer, api=Api.OPENAI), Reading(), Body(limit=100)
    asking = asyncio.create_task(ask(walk, client, body))
    body.feed(b'{"model"', ended=False)
    await asyncio.sleep(0)
    assert client.classes == []
    body.feed(b':"m"}', ended=True)
    await asking
    assert client.read == [b'{"model":"m"}']


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"{", Reason.BAD_REQUEST), (b"{}", Reason.BAD_REQUEST), (b'{"model":"x"}', Reason.UNKNOWN_MODEL)],
)
async def test_a_body_that_names_no_model_of_ours_is_refused(body: bytes, reason: Reason) -> None:
    walk, client = Set(answer, api=Api.OPENAI), Reading()
    await ask(walk, client, body)
    assert [each.reason for each in client.refusals] == [reason]
    assert walk.counted(reason.label)


async def test_a_pool_is_asked_in_its_own_words() -> None:
    oip, openai = Set(answer), Set(answer, api=Api.OPENAI)
    client = Reading()
    await ask(oip, client, ASKED)
    await openai.pipeline(arrival(), client)
    assert [each.reason for each in client.refusals] == [Reason.NOT_FOUND] * 2
    assert client.refusals[0].detail.startswith("the model's pool, main, is asked at /v2/models/NAME/infer")


# Token streams


async def test_a_token_stream_is_passed_on_piece_by_piece_and_clocked() -> None:
    walk, client = Set(tokens, api=Api.OPENAI), Reading()
    await ask(walk, client, ASKED)
    assert client.read == [b"data: 1\n\n", b"data: 2\n\n"]
    (answered,) = client.answered
    assert (answered.streaming, answered.pieces) == (True, 2)
    page = walk.metrics.page()[0].decode()
    assert 'inferlane_first_byte_seconds_count{class="interactive",pool="main"} 1.0' in page
    assert 'inferlane_token_gap_seconds_count{class="interactive",pool="main"} 1.0' in page
    assert walk.endpoint.in_flight == 0


async def test_the_deadline_ends_at_the_first_byte() -> None:
    async def slow(request: Request) -> Reply:
        async def body() -> AsyncGenerator[bytes, None]:
            yield b"first"
            await asyncio.sleep(0.3)
            yield b"much later"

        return Reply(body=body(), streaming=True)

    walk, client = Set(slow, api=Api.OPENAI), Reading()
    await ask(walk, client, ASKED, timeout_s=0.1)
    assert client.read == [b"first", b"much later"]
    assert client.refusals == []


async def test_a_client_that_does_not_read_is_given_up_and_frees_its_place() -> None:
    walk, client = Set(tokens, api=Api.OPENAI), Reading(pause_s=30.0)
    await ask(walk, client, b'{"model":"cheap","stream":true}')
    (refusal,) = client.refusals
    assert (refusal.reason, refusal.detail) == (Reason.CANCELLED, "the client read nothing for 0.05 s")
    assert walk.endpoint.in_flight == 0


async def test_a_stream_may_be_bounded_as_a_whole() -> None:
    async def endless(request: Request) -> Reply:
        async def body() -> AsyncGenerator[bytes, None]:
            while True:
                yield b"more"
                await asyncio.sleep(0.01)

        return Reply(body=body(), streaming=True)

    walk, client = Set(endless, api=Api.OPENAI), Reading()
    await ask(walk, client, b'{"model":"cheap","stream":true}')
    (refusal,) = client.refusals
    assert refusal.reason is Reason.DEADLINE
    assert refusal.detail == "the stream took longer than the 0.3 s of its class"


async def test_a_stream_that_breaks_off_is_no_success_of_anybody() -> None:
    async def broken(request: Request) -> Reply:
        error = Refused(Reason.BACKEND_FAILED, "the backend closed the connection")
        return Reply(body=pieces(b"data: 1\n\n", error=error), streaming=True)

    walk, client = Set(broken, api=Api.OPENAI), Reading()
    await ask(walk, client, ASKED)
    assert [each.reason for each in client.refusals] == [Reason.BACKEND_FAILED]
    assert walk.counted("backend_failed")
    assert walk.endpoint.in_flight == 0


# Sheddable work


async def test_sheddable_work_ends_for_a_higher_class_that_waits() -> None:
    walk, shed, urgent = Set(stuck), Reading(), Reading()
    working = asyncio.create_task(walk.pipeline(arrival(model="cheap"), shed))
    while not walk.endpoint.in_flight:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(walk.pipeline(arrival(model="m"), urgent))
    async with asyncio.timeout(10):
        await working
    (refusal,) = shed.refusals
    assert (refusal.reason, refusal.status, refusal.retry_after_s) == (Reason.EVICTED, 429, 1.0)
    assert refusal.detail == "class background is sheddable, and a higher class had no place in pool main"
    assert walk.endpoint.in_flight == 1  # the other one's
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (walk.counted("evicted"), walk.counted("cancelled")) == (True, True)


async def test_a_sheddable_stream_is_broken_off_visibly() -> None:
    async def endless(request: Request) -> Reply:
        async def body() -> AsyncGenerator[bytes, None]:
            yield b"first"
            await asyncio.Event().wait()

        return Reply(body=body(), streaming=True)

    walk, shed = Set(endless, api=Api.OPENAI), Reading()
    working = asyncio.create_task(ask(walk, shed, b'{"model":"cheap","stream":true}'))
    while not shed.read:
        await asyncio.sleep(0)
    urgent = asyncio.create_task(ask(walk, Reading(), b'{"model":"m"}'))
    async with asyncio.timeout(10):
        await working
    assert [each.reason for each in shed.refusals] == [Reason.EVICTED]
    assert shed.answered[-1].traffic_class is SHEDDABLE
    urgent.cancel()
    await asyncio.gather(urgent, return_exceptions=True)
    assert DEFAULT.rank < SHEDDABLE.rank
