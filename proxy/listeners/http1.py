# SPDX-License-Identifier: Apache-2.0
"""The HTTP/1.1 door, over TLS, TCP or a Unix socket: one request after another on each connection, by aiohttp's server.

aiohttp parses and frames. What a request may look like is decided by the hygiene that HTTP/3 has (protocols/fields.py),
and how long a client may take, and how many there may be, here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from aiohttp import web

from inferlane.errors import Refused
from proxy.arrival import Arrival, Walk
from proxy.listeners.http1_exchange import Feed, Http1Responder, clean_head
from proxy.listeners.marks import Marks
from proxy.listeners.stream_connection import StreamConnection
from proxy.listeners.tcp import Acceptor
from proxy.listeners.tcp_marks import arrived_ds_field, carry, reflected
from proxy.protocols.http_arrival import Origin, arrival
from qos.dscp import dscp_of
from qos.timeline import Timeline

__all__ = ["Http1Door", "Http1Plan", "Models"]

Models = Callable[[], Sequence[tuple[str, bool]]]
"""Each model's name and whether it is ready."""

MOST_CONNECTIONS = 4096
KEEPALIVE_S = 75.0
"""How long a connection may be idle: nginx's default; aiohttp's own hour keeps dead clients."""
QUIET_S = 5.0
"""The same, once another process takes the new ones."""
HANDSHAKE_S = 10.0
HEAD_S = 10.0
"""How long a head may take from its first byte to its last. Bodies have their class's deadline."""
_LOOK_S = 0.5
_READ_AHEAD = 64 * 1024  # aiohttp keeps twice as much of a body beside the window, and otherwise 512 KiB
_INDEX_PATH = "/v2/repository/index"
_CUT_OFF_S = 0.05  # aiohttp takes 0 for "as long as it takes"
_LINGER_S = 2.0  # for a client that is still sending to read that it was refused (RFC 9112 section 9.6)
_GOODBYE_S = 10.0
"""For the last bytes of a reply and TLS's close_notify; then the connection is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Plan:
    """What an HTTP/1.1 door is.

    transport: its word in logs and metrics. tls: None for plain HTTP, on a network that only gateways are in. h3: its
    replies tell of HTTP/3 at the same port. models: what POST /v2/repository/index tells; None: there is no such path.
    """

    listener: str
    transport: str
    max_body: int
    tls: ssl.SSLContext | None = None
    h3: bool = False
    models: Models | None = None
    most_connections: int = MOST_CONNECTIONS


class Http1Door:
    """Makes arrivals of HTTP/1.1 requests, from as many sockets as it is given.

    marks: of the classes, for replies to clients. None: a reply carries the DSCP that its connection came with, for
    whoever connects keeps a connection to one class.
    """

    def __init__(self, walk: Walk, plan: Http1Plan, *, clock: Callable[[], float], marks: Marks | None = None) -> None:
        self._walk = walk
        self._plan = plan
        self._clock = clock
        self._marks = marks
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._retiring = False
        self._acceptors: list[Acceptor] = []
        self._welcoming: set[asyncio.Task[None]] = set()
        self._held: set[socket.socket] = set()
        """Of every connection that is open or in its handshake."""
        self._connections: dict[asyncio.BaseProtocol, StreamConnection] = {}
        self._idle: dict[StreamConnection, float] = {}
        """Connections without a request in flight, and since when: the longest idle first."""
        self._ending: set[StreamConnection] = set()
        """Connections whose last reply is on its way out."""
        self._looking: asyncio.TimerHandle | None = None
        self._counts: Counter[str] = Counter()
        self._http = web.Server(
            self._serve,
            handler_cancellation=True,  # a client that leaves cancels its walk, and so what waits for it or runs
            auto_decompress=False,  # 256 KiB of gzip, one read, unpacks to 256 MiB
            access_log=None,
            read_bufsize=_READ_AHEAD,
            keepalive_timeout=KEEPALIVE_S,
            lingering_time=_LINGER_S,
            tcp_keepalive=False,  # ours is quicker
        )

    def __repr__(self) -> str:
        busy = len(self._connections) - len(self._idle)
        return f"<Http1Door {self._plan.listener}: {len(self._connections)} connections, {busy} in flight>"

    def start(self, sock: socket.socket, *, accepting: bool = True) -> None:
        """Serve a bound socket, which is this door's from now on. accepting: else from `accept` on."""
        if self._marks is not None:
            carry(sock, self._marks.at(self._plan.listener))  # for the answer to a SYN, before anybody is accepted
        self._acceptors.append(Acceptor(sock, self._welcome, accepting=accepting))

    def accept(self) -> None:
        """Take connections, where it stood by."""
        for acceptor in self._acceptors:
            acceptor.accept()

    def retire(self) -> None:
        """Take no new connection, for others do; each that is open gets one more answer, or is closed after a while.

        Not at once: a request may be on its way, and nobody could ask a POST again.
        """
        self._retiring = True
        for acceptor in self._acceptors:
            acceptor.close()

    def drain(self) -> None:
        """Take no new connection, and no further request on those that are open; what is in flight goes on."""
        self._draining = True
        for acceptor in self._acceptors:
            acceptor.close()
        for connection in list(self._idle):
            connection.hang_up()

    def hang_up(self) -> None:
        """On everybody, in the middle of a request too. Behind it, `close` waits for what that stops."""
        self.drain()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for task in self._welcoming:
            task.cancel()
        for connection in list(self._connections.values()):
            connection.cut()

    async def close(self) -> None:
        """Hang up, and wait until nobody works for who was here."""
        self.hang_up()
        await asyncio.gather(*self._welcoming, return_exceptions=True)
        await self._http.shutdown(_CUT_OFF_S)

    @property
    def idle(self) -> bool:
        """Whether no request is in flight, and no last reply on its way out."""
        return len(self._idle) == len(self._connections) and not self._ending

    @property
    def deserted(self) -> bool:
        """Whether there is no connection, and none in its handshake."""
        return not self._held and not self._connections

    @property
    def connections(self) -> int:
        """Open connections, their handshakes completed."""
        return len(self._connections)

    @property
    def handshakes(self) -> int:
        """TLS handshakes completed."""
        return self._counts["handshakes"]

    @property
    def connections_dropped(self) -> Mapping[str, int]:
        """Connections given up, by reason: handshake_failed, slow_head, made_room, full."""
        return {reason: count for reason, count in self._counts.items() if reason != "handshakes"}

    def opened(self, connection: StreamConnection) -> None:
        """A connection can be used, its handshake included."""
        self._counts["handshakes"] += int(self._plan.tls is not None)
        self._connections[connection.parser] = connection
        self._idle[connection] = self._clock()
        if self._draining:
            connection.hang_up()
        elif self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    def lost(self, connection: StreamConnection) -> None:
        """A connection is gone."""
        self._connections.pop(connection.parser, None)
        self._held.discard(connection.sock)
        self._idle.pop(connection, None)
        self._ending.discard(connection)

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._held) >= self._plan.most_connections and not self._make_room():
            self._counts["full"] += 1
            sock.close()
            return
        if self._marks is not None:
            carry(sock, self._marks.at(self._plan.listener))
        self._held.add(sock)
        task = self._loop.create_task(self._open(sock))
        self._welcoming.add(task)
        task.add_done_callback(partial(self._welcomed, sock))

    def _welcomed(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._welcoming.discard(task)
        if task.cancelled():
            self._held.discard(sock)
            sock.close()

    def _make_room(self) -> bool:
        """The connection that has been idle for longest goes, as it may at any time (RFC 9112 section 9.5)."""
        connection = next(iter(self._idle), None)
        if connection is None:
            return False
        self._counts["made_room"] += 1
        self.lost(connection)
        connection.cut()
        return True

    async def _open(self, sock: socket.socket) -> None:
        tls = self._plan.tls
        try:
            await self._loop.connect_accepted_socket(
                lambda: StreamConnection(sock, self._http(), self, clock=self._clock, marks=self._marks),
                sock,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
                ssl_shutdown_timeout=None if tls is None else _GOODBYE_S,
            )
        except OSError:  # ssl.SSLError and asyncio's time-out are such; who speaks no TLS is told nothing
            self._counts["handshake_failed"] += 1
            self._held.discard(sock)
            sock.close()

    def _look(self) -> None:
        """Whoever is too slow, or gone without our having read it, has no place here."""
        self._looking = self._loop.call_later(_LOOK_S, self._look) if self._connections else None
        now = self._clock()
        for connection, since in list(self._idle.items()) if self._retiring else ():
            if connection.head_since is None and now - since >= QUIET_S:
                connection.hang_up()
        for connection in list(self._connections.values()):
            if connection.head_since is not None and now - connection.head_since >= HEAD_S:
                self._counts["slow_head"] += 1
                connection.cut()
            elif connection.busy and connection.has_left:
                connection.cut()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._connections.get(request.protocol)
        if connection is None:
            raise asyncio.CancelledError  # it was cut between its request and now
        connection.begin()
        self._idle.pop(connection, None)
        try:
            if self._plan.models is not None and request.path == _INDEX_PATH:
                return _index(request.method, self._plan.models())
            return await self._exchange(request, connection)
        finally:
            connection.end()
            if connection.parser in self._connections:
                self._idle[connection] = self._clock()
                if self._draining or self._retiring:
                    self._ending.add(connection)
                    request.protocol.close()  # not before: it would stop the rest of a body too

    async def _exchange(self, request: web.BaseRequest, connection: StreamConnection) -> web.StreamResponse:
        arrived, feed = self._arrival(request, connection)
        responder = Http1Responder(request, connection, last=lambda: self._draining or self._retiring, h3=self._plan.h3)
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

    def _arrival(self, request: web.BaseRequest, connection: StreamConnection) -> tuple[Arrival, Feed | None]:
        ds_field = arrived_ds_field(connection.sock)
        if self._marks is None:
            carry(connection.sock, reflected(ds_field))
        origin = Origin(
            transport=self._plan.transport,
            listener=self._plan.listener,
            client=request.remote or "127.0.0.1",  # a Unix socket's peer has no address and is on this machine
            dscp=dscp_of(ds_field),
            timeline=Timeline(self._clock(), rtt_s=connection.rtt_s),
            max_body=self._plan.max_body,
        )
        head = clean_head(request)
        declared = None if isinstance(head, Refused) else head.content_length
        feed = Feed(request, limit=self._plan.max_body, declared=declared)
        arrived = arrival(head, feed.body, origin)
        return arrived, None if arrived.refusal is not None or feed.at_once() else feed


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
