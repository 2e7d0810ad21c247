# SPDX-License-Identifier: Apache-2.0
"""What a server can do wrong, and what a client is told of it."""

from __future__ import annotations

import asyncio

import pytest

from backends.body import Body
from backends.messages import Request
from backends.remote.oip import OipBackend
from inferlane.errors import Reason, Refused
from tests.fakes.asking import SOON, asking, request_of, settle
from tests.fakes.raw_server import Peer, RawServer

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b'content-length: 7\r\n\r\n{"a":1}'


async def whole(backend: OipBackend, request: Request | None = None) -> bytes:
    """The reply's body, read to its end."""
    reply = await backend.infer(request or request_of())
    return reply.body if isinstance(reply.body, bytes) else b"".join([piece async for piece in reply.body])


BREAKING = {
    "closes at once": b"",
    "closes within the head": b"HTTP/1.1 200 O",
    "closes within the body": OK + b"content-length: 5\r\n\r\n{}l",
    "says garbage": b"\x00\x01\x02\r\n\r\n",
    "says two lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}llo",
    "says a length and chunks": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    "switches protocols": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
    "says an endless head": OK + b"a: " + b"x" * 100_000,
    "says nonsense about its JSON": OK + b"inference-header-content-length: x\r\ncontent-length: 2\r\n\r\n{}",
    "says at once that all is well": OK + b"content-length: 2\r\n\r\nOK",
    "says nothing, well": OK + b"content-length: 0\r\n\r\n",
    "says a long web page": OK + b"content-length: 70000\r\n\r\n<html>" + b" " * 69_994,
    "wants another key": b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}",
    "says more JSON than body": OK + b"inference-header-content-length: 3\r\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("said", BREAKING.values(), ids=BREAKING)
async def test_a_server_that_breaks_off_or_says_nonsense(backend, server, said):
    task = asyncio.ensure_future(whole(backend))
    peer = await server.accept()
    await peer.request()
    peer.say(said)
    peer.close()
    with pytest.raises(Refused) as refused:
        await task
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)


BREAKING_OFF = {
    "closes": OK + b"content-length: 100000\r\n\r\n{bc",
    "closes within a chunk": OK + b"transfer-encoding: chunked\r\n\r\n5\r\n{bc",
    "says a bad chunk": OK + b"transfer-encoding: chunked\r\n\r\n3\r\n{bc\r\nzz\r\n",
}


@pytest.mark.parametrize("said", BREAKING_OFF.values(), ids=BREAKING_OFF)
async def test_a_server_that_breaks_off_after_its_head(backend, server, said):
    task = asyncio.ensure_future(whole(backend))
    peer = await server.accept()
    await peer.request()
    head, _, rest = said.partition(b"\r\n\r\n")
    peer.say(head + b"\r\n\r\n")
    await asyncio.sleep(0)
    peer.say(rest)
    peer.close()
    with pytest.raises(Refused) as refused:
        await task
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)


@pytest.mark.parametrize(
    "said", [b"", OK, OK + b"content-length: 9\r\n\r\n{bc", OK + b"content-length: 99999\r\n\r\n{bc"]
)
async def test_a_server_that_stalls(backend, server, said):
    task = asyncio.ensure_future(whole(backend, request_of(timeout_s=5 * SOON)))
    peer = await server.accept()
    await peer.request()
    peer.say(said)
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE
    assert await peer.end() == b""


async def test_a_client_that_goes_away_while_a_reply_streams(backend, server):
    task = asyncio.ensure_future(whole(backend))
    peer = await server.accept()
    await peer.request()
    peer.say(OK + b"transfer-encoding: chunked\r\n\r\n3\r\n{bc\r\n")
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await peer.end() == b""


async def test_a_server_that_is_not_there(server):
    backend = OipBackend(f"http://127.0.0.1:{server.port}", slots=1)
    await server.close()
    with pytest.raises(Refused, match="Connection refused") as refused:
        await backend.infer(request_of())
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 503)


async def test_time_that_is_up_is_not_spent_on_asking(backend, server):
    with pytest.raises(Refused) as refused:
        await backend.infer(request_of(timeout_s=-1))
    assert refused.value.reason is Reason.DEADLINE
    assert server.accepted == 0


async def test_a_name_that_would_leave_its_place_is_not_asked_for(backend, server):
    with pytest.raises(Refused) as refused:
        await backend.infer(request_of(model=".."))
    assert refused.value.reason is Reason.UNKNOWN_MODEL
    assert server.accepted == 0


async def kept(backend: OipBackend, server: RawServer) -> Peer:
    """A peer whose connection is kept."""
    task = asking(backend)
    peer = await server.accept()
    await peer.request()
    peer.say(HELLO)
    await task
    return peer


async def test_a_kept_connection_that_dies_when_asked_is_replaced_once(backend, server):
    peer = await kept(backend, server)
    task = asking(backend)
    await peer.head()
    peer.reset()
    again = await server.accept()
    head, body = await again.request()
    assert head.startswith(b"POST /v2/models/magika/infer HTTP/1.1\r\n")
    assert body == b"{}"
    again.say(HELLO)
    assert (await task).body == b'{"a":1}'


async def test_a_fresh_connection_that_dies_is_the_answer(backend, server):
    peer = await kept(backend, server)
    task = asking(backend)
    await peer.head()
    peer.reset()
    (await server.accept()).reset()
    with pytest.raises(Refused) as refused:
        await task
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)
    assert server.accepted == 2


async def test_a_body_that_cannot_be_sent_twice_is_not(backend, server):
    peer = await kept(backend, server)
    body = Body(limit=100)
    task = asking(backend, request_of(body))
    await peer.head()
    body.feed(b"abc", ended=False)
    peer.reset()
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.status == 502
    assert server.accepted == 1


async def test_closing_fails_what_is_in_flight(backend, server):
    task = asking(backend)
    peer = await server.accept()
    await peer.request()
    await backend.close()
    with pytest.raises(Refused):
        await task
    assert await peer.end() == b""
