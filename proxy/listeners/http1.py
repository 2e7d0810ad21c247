# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 door, over TCP or a Unix socket: one request after another on each connection, by aiohttp's server.

aiohttp parses and frames. What a request may look like is decided by the hygiene that HTTP/3 has (protocols/fields.py).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Arrival, Walk
from proxy.listeners.tcp_marks import arrived_ds_field, carry, listen_for_marks
from proxy.protocols.answers import HeadFields, refusal_answer, reply_head
from proxy.protocols.fields import FieldsTooLarge, MalformedRequest, RequestHead, clean
from proxy.protocols.http_arrival import Origin, arrival
from qos.dscp import dscp_of
from qos.timeline import Timeline

__all__ = ["Http1Door", "Models"]

Models = Callable[[], Sequence[tuple[str, bool]]]
"""Each model's name and whether it is ready."""

WINDOW = 256 * 1024
"""Body bytes read ahead of the backend before the client is made to wait."""
_KEEPALIVE_S = 75.0  # nginx's default; aiohttp's own hour keeps dead clients
_INDEX_PATH = "/v2/repository/index"
_CUT_OFF_S = 0.05  # aiohttp takes 0 for "as long as it takes"
_LINGER_S = 2.0  # for a client that is still sending to read that it was refused (RFC 9112 section 9.6)
# RFC 9110 section 7.6.1; fields.py knows the rest of what stays on this hop.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"te"})


class Http1Door:
    """Makes arrivals of HTTP/1.1 requests, from as many sockets as it is given.

    models: what POST /v2/repository/index tells; None: there is no such path here. Replies carry the DSCP that their
    connection came with: whoever connects keeps a connection to one class.
    """

    def __init__(
        self, walk: Walk, *, listener: str, max_body: int, clock: Callable[[], float], models: Models | None = None
    ) -> None:
        self._walk = walk
        self._listener = listener
        self._max_body = max_body
        self._clock = clock
        self._models = models
        self._draining = False
        self._busy: set[web.RequestHandler] = set()
        """Connections with a request in flight."""
        self._servers: list[asyncio.Server] = []
        self._http = web.Server(
            self._serve,
            handler_cancellation=True,  # a client that leaves cancels its walk, and so what waits for it or runs
            auto_decompress=False,  # 256 KiB of gzip, one read, unpacks to 256 MiB
            access_log=None,
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
        )

    def __repr__(self) -> str:
        return f"<Http1Door {self._listener}: {len(self._http.connections)} connections, {len(self._busy)} in flight>"

    async def start(self, sock: socket.socket) -> None:
        """Serve a bound socket, which is this door's from now on."""
        loop = asyncio.get_running_loop()
        listen_for_marks(sock)
        serve = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._servers.append(await serve(self._http, sock=sock))

    def drain(self) -> None:
        """Take no new connection, and no further request on those that are open; what is in flight goes on."""
        self._draining = True
        for server in self._servers:
            server.close()
        for connection in self._http.connections:
            if connection not in self._busy:
                connection.force_close()

    async def close(self) -> None:
        """Hang up on everybody, in the middle of a request too."""
        self.drain()
        await self._http.shutdown(_CUT_OFF_S)

    @property
    def idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._busy

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._models is not None and request.path == _INDEX_PATH:
            return _index(request.method, self._models())
        self._busy.add(request.protocol)
        try:
            return await self._exchange(request)
        finally:
            self._busy.discard(request.protocol)
            if self._draining:
                request.protocol.close()  # not before: it would stop the rest of a body too

    async def _exchange(self, request: web.BaseRequest) -> web.StreamResponse:
        arrived, feed = self._arrival(request)
        responder = Http1Responder(request, last=lambda: self._draining)
        if feed is None:
            await self._walk(arrived, responder)
        else:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(feed.run())
                await self._walk(arrived, responder)
                feeding.cancel()
        if responder.response is None:
            raise RuntimeError(f"the walk of {arrived.request_id} ended without an answer")
        return responder.response

    def _arrival(self, request: web.BaseRequest) -> tuple[Arrival, Feed | None]:
        origin = Origin(
            transport="http",
            listener=self._listener,
            client=request.remote or "127.0.0.1",  # a Unix socket's peer has no address and is on this machine
            dscp=_reflected_dscp(request),
            timeline=Timeline(self._clock()),
            max_body=self._max_body,
        )
        clean_head = _clean_head(request)
        declared = None if isinstance(clean_head, Refused) else clean_head.content_length
        feed = Feed(request, limit=self._max_body, declared=declared)
        arrived = arrival(clean_head, feed.body, origin)
        return arrived, None if arrived.refusal is not None or feed.at_once() else feed


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
    """The way back for one request. last: whether its connection shall end with it."""

    def __init__(self, request: web.BaseRequest, *, last: Callable[[], bool]) -> None:
        self._request = request
        self._last = last
        self.response: web.StreamResponse | None = None

    def judged(self, answered: Answered) -> None:
        """Its connection has carried the mark that came since before the class was known."""

    async def reply(self, reply: Reply, answered: Answered) -> None:
        status, fields = reply_head(reply, answered)
        if isinstance(reply.body, bytes):
            answered.bytes_out = len(reply.body)
            await self._send(web.Response(status=status, headers=_headers(fields), body=reply.body))
            return
        response = web.StreamResponse(status=status, headers=_headers(fields))
        await self._begin(response)
        async for chunk in reply.body:
            await _while_connected(response.write(chunk))
            answered.bytes_out += len(chunk)
        await _while_connected(response.write_eof())

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        if self.response is None:
            status, fields, body = refusal_answer(refusal, answered)
            await self._send(web.Response(status=status, headers=_headers(fields), body=body))
        elif self._request.transport is not None:
            # Never a clean end after a broken one: the client must see that the body is not whole.
            self._request.transport.abort()

    async def _send(self, response: web.Response) -> None:
        await self._begin(response)
        await _while_connected(response.write_eof())

    async def _begin(self, response: web.StreamResponse) -> None:
        if self._last():
            response.force_close()
        self.response = response
        await _while_connected(response.prepare(self._request))


def _reflected_dscp(request: web.BaseRequest) -> int:
    """The DSCP a request came with, which its reply carries from here on."""
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    if sock is None:
        return 0
    ds_field = arrived_ds_field(sock)
    carry(sock, ds_field)
    return dscp_of(ds_field)


async def _while_connected(step: Awaitable[object]) -> None:
    """A client that is gone cancels its walk; a write may notice before the loop tells aiohttp."""
    try:
        await step
    except ConnectionError:
        raise asyncio.CancelledError from None


def _clean_head(request: web.BaseRequest) -> RequestHead | Refused:
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
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return Refused(Reason.BAD_REQUEST, "send the body without content-encoding", status=415)
    try:
        return clean(section)
    except FieldsTooLarge as error:
        return Refused(Reason.FIELDS_TOO_LARGE, str(error))
    except MalformedRequest as error:
        return Refused(Reason.BAD_REQUEST, str(error))


def _headers(fields: HeadFields) -> list[tuple[str, str]]:
    decoded = [(name.decode(), value.decode("utf-8", "replace")) for name, value in fields]
    return [*decoded, ("server", "inferlane")]


def _index(method: str, models: Sequence[tuple[str, bool]]) -> web.Response:
    """Triton's model repository extension, as far as looking goes."""
    if method != "POST":
        return _json(405, {"error": f"{_INDEX_PATH} takes POST"}, {"Allow": "POST"})
    entries = [
        {"name": name, "version": "1", "state": "READY" if ready else "UNAVAILABLE", "reason": ""}
        for name, ready in models
    ]
    return _json(200, entries)


def _json(status: int, document: object, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(document)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
