# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 exchange: its head in HTTP/3's words, its body a window ahead, and the way back, by aiohttp's server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered
from proxy.listeners.stream_connection import StreamConnection
from proxy.protocols.answers import HeadFields, error_event, refusal_answer, reply_head
from proxy.protocols.fields import FieldsTooLarge, MalformedRequest, RequestHead, clean

__all__ = ["WINDOW", "Feed", "Http1Responder", "clean_head"]

WINDOW = 256 * 1024
"""Body bytes read ahead of the backend before the client is made to wait."""
_AT_ONCE = 256 * 1024
_PART = 64 * 1024
_FAREWELL_S = 1.0
"""Longest wait for the last event of a broken stream to leave."""
_ALTERNATIVE_S = 86_400
_EVENTS = "text/event-stream"
# RFC 9110 section 7.6.1; fields.py knows the rest of what stays on this hop.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"})


class Feed:
    """A request's body on its way out of aiohttp's buffer, a window ahead of whoever reads it."""

    def __init__(self, request: web.BaseRequest, *, limit: int, declared: int | None) -> None:
        self.body = Body(limit=limit, declared=declared, consumed=self._consumed)
        self._request = request
        self._content: StreamReader = request.content
        self._unread = 0
        self._room = asyncio.Event()

    def at_once(self) -> bool:
        """Most bodies come in one segment with their head: then no task is needed to wait for more."""
        if self._content.exception() is not None or not self._content.is_eof():
            return False
        self.body.feed(self._content.read_nowait(), ended=True)
        return True

    async def run(self) -> None:
        """Feed until the end of the body. What breaks off is the client's fault and the reader's refusal."""
        try:
            if self._request.headers.get("Expect", "").lower() == "100-continue":
                await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._request.writer.output_size = 0  # aiohttp counts it as a reply begun
            while data := await self._content.readany():
                self._unread += len(data)
                self.body.feed(data, ended=False)
                while self._unread >= WINDOW:
                    self._room.clear()
                    await self._room.wait()
            self.body.feed(b"", ended=True)
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:
            self.body.fail(Refused(Reason.BAD_REQUEST, f"the body broke off or is not framed as announced: {error}"))

    def _consumed(self, count: int) -> None:
        self._unread -= count
        self._room.set()


class Http1Responder:
    """The way back for one request. last: whether its connection shall end with it. h3: its replies tell of HTTP/3."""

    def __init__(
        self, request: web.BaseRequest, client: StreamConnection, *, last: Callable[[], bool], h3: bool
    ) -> None:
        self._request = request
        self._client = client
        self._h3 = h3
        self._last = last
        self.response: web.StreamResponse | None = None

    def judged(self, answered: Answered) -> None:
        """One request at a time: its class's mark is the connection's until the next one has its class."""
        self._client.carry(answered.traffic_class)

    async def reply(self, reply: Reply, answered: Answered) -> None:
        answered.arrival.timeline.rtt_s = self._client.rtt_s
        status, fields = reply_head(reply, answered)
        if isinstance(reply.body, bytes) and len(reply.body) <= _AT_ONCE:
            answered.bytes_out = len(reply.body)
            await self._send(web.Response(status=status, headers=self._headers(fields), body=reply.body))
            return
        response = web.StreamResponse(status=status, headers=self._headers(fields))
        await self._begin(response)
        async for chunk in _parts(reply.body) if isinstance(reply.body, bytes) else reply.body:
            await _while_connected(response.write(chunk))  # one write: a chunk of HTTP's for each of the backend's
            answered.bytes_out += len(chunk)
        await _while_connected(response.write_eof())

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        if self.response is None:
            status, fields, body = refusal_answer(refusal, answered)
            await self._send(web.Response(status=status, headers=self._headers(fields), body=body))
            return
        # Never a clean end after a broken one: the client must see that the body is not whole.
        if self.response.content_type == _EVENTS and "Transfer-Encoding" in self.response.headers:
            await self._tell(self.response, error_event(refusal, answered.arrival.request_id))
        else:
            self._client.break_off(after_s=0)

    async def _tell(self, response: web.StreamResponse, event: bytes) -> None:
        """A last event, and no last chunk behind it."""
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await response.write(event)
        except (ConnectionError, TimeoutError):
            self._client.break_off(after_s=0)
        else:
            self._client.break_off(after_s=_FAREWELL_S)

    async def _send(self, response: web.Response) -> None:
        await self._begin(response)
        await _while_connected(response.write_eof())

    async def _begin(self, response: web.StreamResponse) -> None:
        if self._last():
            response.force_close()
        self.response = response
        await _while_connected(response.prepare(self._request))

    def _headers(self, fields: HeadFields) -> list[tuple[str, str]]:
        headers = [(name.decode(), value.decode("utf-8", "replace")) for name, value in fields]
        if self._h3:
            headers.append(("alt-svc", f'h3=":{self._client.port}"; ma={_ALTERNATIVE_S}'))  # RFC 7838 section 3
        return [*headers, ("server", "inferlane")]


async def _parts(body: bytes) -> AsyncGenerator[bytes, None]:
    """A long body piece by piece: encrypting 64 MiB at once holds up everybody for a tenth of a second."""
    for start in range(0, len(body), _PART):
        yield body[start : start + _PART]
        await asyncio.sleep(0)


async def _while_connected(step: Awaitable[object]) -> None:
    """A client that is gone cancels its walk; a write may notice before the loop tells aiohttp."""
    try:
        await step
    except ConnectionError:
        raise asyncio.CancelledError from None


def clean_head(request: web.BaseRequest) -> RequestHead | Refused:
    """The request in HTTP/3's words, so that one set of rules judges both."""
    named = request.headers.get("Connection", "").lower().encode("utf-8", "replace").split(b",")
    hop_by_hop = _HOP_BY_HOP.union(map(bytes.strip, named))
    fields = [(name.lower(), value.strip(b" \t")) for name, value in request.raw_headers]
    section = [
        (b":method", request.method.encode("utf-8", "replace")),
        (b":scheme", b"https"),
        (b":path", request.raw_path.encode("utf-8", "surrogateescape")),
        *((name, value) for name, value in fields if name not in hop_by_hop),
    ]
    if _other_than(fields, b"content-encoding", b"identity"):
        return Refused(Reason.BAD_REQUEST, "send the body without content-encoding", status=415)
    if _other_than(fields, b"transfer-encoding", b"chunked"):
        # aiohttp undoes the chunks alone, and the field that tells of the rest does not pass (RFC 9112 section 6.1)
        return Refused(Reason.BAD_REQUEST, "send the body without transfer-encoding, or chunked", status=501)
    try:
        return clean(section)
    except FieldsTooLarge as error:
        return Refused(Reason.FIELDS_TOO_LARGE, str(error))
    except MalformedRequest as error:
        return Refused(Reason.BAD_REQUEST, str(error))


def _other_than(fields: HeadFields, name: bytes, plain: bytes) -> bool:
    return any(each == name and value.lower() != plain for each, value in fields)
