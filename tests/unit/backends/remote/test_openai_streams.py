# SPDX-License-Identifier: Apache-2.0
"""Token streams: each token when it is made, and every way in which a server, a client or the time ends one."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from backends.messages import Pieces, Reply
from backends.remote.connection import MOST_BUFFERED
from backends.remote.openai import OpenAiBackend
from backends.remote.sse import KEEPALIVE
from inferlane.errors import Reason, Refused
from qos.traffic_class import StreamPromise, TrafficClass
from tests.fakes.asking import SOON, asking, request_of

STREAM = b'{"model": "tiny", "stream": true}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
DONE = b"data: [DONE]\n\n"


def streaming(promise: StreamPromise | None = None, **more):
    traffic_class = TrafficClass(
        name="c", rank=0, dscp=0, deadline_s=60, queue_s=1, stream=promise or StreamPromise(stall_s=30)
    )
    settled = {"model": "tiny", "path": "/v1/chat/completions", "traffic_class": traffic_class, "streaming": True}
    return request_of(STREAM, **(settled | more))


class Paced:
    """Lets one token go at a time."""

    def __init__(self) -> None:
        self._go = asyncio.Semaphore(0)

    async def __call__(self, number: int) -> None:
        await self._go.acquire()

    def next(self) -> None:
        self._go.release()


def pieces_of(reply: Reply) -> Pieces:
    assert not isinstance(reply.body, bytes)
    assert reply.streaming
    return reply.body


async def ending(pieces: Pieces) -> tuple[bytes, Refused | None]:
    """What came, and how it ended."""
    came = b""
    try:
        async for piece in pieces:
            came += piece
    except Refused as refused:
        return came, refused
    return came, None


async def test_each_token_comes_when_it_is_made(openai, upstream):
    upstream.script.pace = pace = Paced()
    request = streaming()
    task = asking(openai, request)
    seen = await upstream.seen(1)
    await asyncio.sleep(SOON)
    assert not task.done()  # the head is here, and no token yet
    before = monotonic()
    pace.next()
    reply = await task
    pieces = pieces_of(reply)
    assert before <= request.timeline.first_byte <= monotonic()
    assert (b"content-type", b"text/event-stream; charset=utf-8") in reply.fields
    for number, token in enumerate((b"Hel", b"lo", b"!"), start=1):
        piece = await anext(pieces)
        assert token in piece
        assert piece.count(b"chat.completion.chunk") == 1
        assert seen.tokens_sent == number
        pace.next()
    assert (await ending(pieces))[1] is None


async def test_a_stream_that_was_read_leaves_its_connection_to_the_next(openai, upstream):
    for _ in range(3):
        came, refused = await ending(pieces_of(await openai.infer(streaming())))
        assert refused is None
        assert came.endswith(DONE)
    assert upstream.connections == 1


async def test_the_deadline_is_until_the_first_token(openai, upstream):
    upstream.script.pace = Paced()
    task = asking(openai, streaming(timeout_s=5 * SOON))
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE
    async with asyncio.timeout(10):
        await (await upstream.seen(1)).gone.wait()


async def test_the_deadline_means_nothing_behind_the_first_token(openai, upstream):
    upstream.script.pace = pace = Paced()
    request = streaming(timeout_s=10 * SOON)
    task = asking(openai, request)
    pace.next()
    pieces = pieces_of(await task)
    while monotonic() < request.deadline + SOON:
        await asyncio.sleep(SOON)
    for _ in range(2):
        pace.next()
    assert (await ending(pieces))[1] is None


async def test_a_silent_server_is_told_by_comments_and_given_up(openai, upstream):
    upstream.script.stall_after = 1
    reply = await openai.infer(streaming(StreamPromise(stall_s=10 * SOON, keepalive_s=2 * SOON)))
    came, refused = await ending(pieces_of(reply))
    assert refused is not None
    assert refused.reason is Reason.STALLED
    assert came.startswith(b"data: ")
    assert came.count(KEEPALIVE) >= 1
    async with asyncio.timeout(10):
        await (await upstream.seen(1)).gone.wait()


@pytest.mark.parametrize("way", ["break_after", "end_after"])
async def test_a_stream_that_breaks_off_never_ends_cleanly(openai, upstream, way):
    setattr(upstream.script, way, 2)
    came, refused = await ending(pieces_of(await openai.infer(streaming())))
    assert refused is not None
    assert (refused.reason, came.count(b"data: ")) == (Reason.BACKEND_FAILED, 2)


@pytest.mark.parametrize("way", ["break_after", "end_after"])
async def test_one_that_breaks_off_before_its_first_token_was_never_an_answer(openai, upstream, way):
    setattr(upstream.script, way, 0)
    with pytest.raises(Refused) as refused:
        await openai.infer(streaming())
    assert refused.value.reason is Reason.BACKEND_FAILED


async def test_a_client_that_leaves_ends_its_stream_at_the_server(openai, upstream):
    upstream.script.pace = pace = Paced()
    task = asking(openai, streaming())
    pace.next()
    await pieces_of(await task).aclose()
    async with asyncio.timeout(10):
        await (await upstream.seen(1)).gone.wait()


async def test_a_client_that_leaves_while_nothing_comes_ends_its_stream_too(openai, upstream):
    upstream.script.stall_after = 1
    pieces = pieces_of(await openai.infer(streaming()))
    await anext(pieces)
    waiting = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(10):
        await (await upstream.seen(1)).gone.wait()


async def test_a_slow_client_slows_its_own_stream_and_no_other(openai, upstream):
    upstream.script.tokens = ("x" * 65536,) * 512
    slow = pieces_of(await openai.infer(streaming()))
    seen = await upstream.seen(1)
    came, refused = await ending(pieces_of(await openai.infer(streaming())))
    assert (refused, len(came) > 32 << 20) == (None, True)
    sent = -1
    while sent != seen.tokens_sent:  # until the kernel's buffers are full and nothing moves any more
        sent = seen.tokens_sent
        await asyncio.sleep(SOON)
    assert sent < 512
    assert len(await anext(slow)) <= 2 * MOST_BUFFERED
    came, refused = await ending(slow)
    assert refused is None
    assert came.endswith(DONE)


@pytest.mark.parametrize(("end", "well"), [(DONE, True), (b"", False)])
async def test_a_stream_that_is_there_at_once(server, end, well):
    backend = OpenAiBackend(f"http://127.0.0.1:{server.port}", slots=1)
    task = asking(backend, streaming())
    peer = await server.accept()
    await peer.request()
    events = b"data: {}\n\n" + end
    peer.say(OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))
    if well:
        reply = await task
        assert (reply.body, reply.streaming) == (events, False)
    else:
        with pytest.raises(Refused) as refused:
            await task
        assert refused.value.reason is Reason.BACKEND_FAILED
    await backend.close()


@pytest.mark.parametrize("framing", [b"content-length: 1000\r\n\r\n", b"\r\n"])
async def test_other_framings_than_chunks(server, framing):
    backend = OpenAiBackend(f"http://127.0.0.1:{server.port}", slots=1)
    task = asking(backend, streaming())
    peer = await server.accept()
    await peer.request()
    peer.say(OK + framing + b"data: {}\n\n")
    pieces = pieces_of(await task)
    assert await anext(pieces) == b"data: {}\n\n"
    peer.say(DONE)
    peer.close()
    came, refused = await ending(pieces)
    assert came == DONE
    assert (refused is None) == (framing == b"\r\n")  # the other one is shorter than it said
    await backend.close()


async def test_an_error_in_the_form_of_a_stream_passes(server):
    backend = OpenAiBackend(f"http://127.0.0.1:{server.port}", slots=1)
    task = asking(backend, streaming())
    peer = await server.accept()
    await peer.request()
    said = b'data: {"error": {}}\n\n'
    peer.say(OK.replace(b"200 OK", b"503 Busy") + b"content-length: %d\r\n\r\n" % len(said) + said)
    reply = await task
    body = reply.body if isinstance(reply.body, bytes) else (await ending(reply.body))[0]
    assert (reply.status, body) == (503, said)
    await backend.close()
