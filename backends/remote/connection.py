# SPDX-License-Identifier: Apache-2.0
"""One HTTP/1.1 connection to a backend: one exchange at a time, each with a deadline. It never opens or keeps itself.

A request that is there as a whole costs one write, one read, one future and no task; the timer belongs to the
connection and is moved only when it fires (docs/decisions/0001-own-http1-client.md).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from time import monotonic
from typing import Protocol, cast

from backends.remote.fields import Said
from backends.remote.http1 import Garbage, Heads, ReplyReader
from backends.remote.reply_body import ReplyBody
from inferlane.errors import Reason, Refused

__all__ = ["MOST_BUFFERED", "READ", "Answer", "Connection", "Owner", "Stale", "Upload"]

WHOLE_REPLY = 64 * 1024
"""A reply announced to be no longer than this is waited for and handed on as bytes."""
READ = 64 * 1024
"""Bytes of one read. Loops read 256 KiB at a time where a protocol leaves it to them, and a client that does not read
costs what was read for it, here and once more in its door."""
MOST_BUFFERED = 64 * 1024
"""Reading stops while more than this waits for the client; one read may have brought READ beyond it."""
MOST_UNSENT = 64 * 1024
"""An upload waits while more than this of it was not taken by the backend's socket."""


class Stale(Refused):
    """A kept connection was closed before any byte of the reply: most likely it was already closing when asked."""


@dataclass(slots=True)
class Answer:
    """A reply as HTTP has it."""

    status: int
    said: Said
    """By its header fields."""
    body: bytes | ReplyBody
    first_byte: float
    """Monotonic seconds."""

    def discard(self) -> None:
        """Nobody wants the body: one that still comes is broken off."""
        if not isinstance(self.body, bytes):
            self.body.discard()


class Upload(Protocol):
    """A request's body that is sent while it arrives."""

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        ...


class Owner(Protocol):
    """Who keeps connections between exchanges."""

    def keep(self, connection: Connection) -> None:
        """The exchange is over and the connection is good for another."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        ...


class _Phase(Enum):
    IDLE = auto()
    ASKED = auto()
    """The request goes out, or the reply's head and first body byte (or the whole of a small reply) are awaited."""
    ANSWERING = auto()
    """The first of the body was handed on; the rest follows in pieces."""
    CLOSED = auto()


# read several times a request, and an enum's members are looked up slowly
_IDLE, _ASKED, _ANSWERING, _CLOSED = _Phase


class Connection(asyncio.BufferedProtocol):
    """IDLE -> ASKED -> (ANSWERING ->) IDLE, and from everywhere to CLOSED.

    class_name: the traffic class it carries; connections are never shared between classes;
    heads: what was read before on the connections of the same server; room: where all connections of one loop may
    read, READ bytes, because each takes what it read before another reads.
    """

    __slots__ = (
        "_deadline",
        "_error",
        "_events",
        "_exchanges",
        "_first_byte",
        "_loop",
        "_more",
        "_owner",
        "_paused",
        "_phase",
        "_reader",
        "_room",
        "_takes_events",
        "_timer",
        "_timer_at",
        "_transport",
        "_upload",
        "_waiter",
        "_writable",
        "class_name",
        "idle_since",
    )

    _transport: asyncio.Transport

    def __init__(
        self, owner: Owner, class_name: str, heads: Heads | None = None, room: memoryview | None = None
    ) -> None:
        self.class_name = class_name
        self.idle_since = monotonic()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._phase = _IDLE
        self._reader = ReplyReader(heads)
        self._room = memoryview(bytearray(READ)) if room is None else room
        self._exchanges = 0
        self._deadline = inf
        self._takes_events = False
        self._events = False
        """The reply is an event stream, whose reader says how long it waits for each piece."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._waiter: asyncio.Future[Answer] | None = None
        self._more: asyncio.Future[None] | None = None
        self._first_byte: float | None = None
        self._error: Exception | None = None
        self._paused = False
        self._upload: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = f"{self._phase.name.lower()}, exchange {self._exchanges}"
        return f"<Connection {self.class_name} {state}, {self._reader!r}>"

    @property
    def usable(self) -> bool:
        """Whether it can be asked."""
        return self._phase is _IDLE

    async def ask(
        self,
        data: bytes,
        *,
        deadline: float,
        body: Upload | None = None,
        length: int | None = None,
        events: bool = False,
    ) -> Answer:
        """Send a request and wait for its answer until the first byte of its body is here.

        The whole reply is due at `deadline`, monotonic seconds; with `events`, of an event stream its first byte.
        data: the head, with the body behind it unless that comes as `body`, which is sent while it arrives:
        with `length` bytes as the head announced, or chunked if `length` is None.
        """
        if self._error is not None:
            raise self._error  # closed by the other side since it was taken or opened
        self._phase = _ASKED
        self._exchanges += 1
        self._first_byte = None
        self._takes_events = events
        self._events = False
        self._reader.begin()
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._watch(deadline)
        self._transport.write(data)
        if body is not None:
            self._upload = self._loop.create_task(self._send(body, length))
            self._upload.add_done_callback(self._upload_done)
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiter is waiter:  # else the reply was complete, and the connection may be another request's now
                self.close()
            raise

    def close(self, error: Exception | None = None) -> None:
        """End at once; whoever still waits gets `error`."""
        if self._phase is _CLOSED:
            return
        self._phase = _CLOSED
        self._error = error or Refused(Reason.BACKEND_FAILED, "the connection to the backend was closed")
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        if self._upload is not None:
            self._upload.cancel()
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_exception(self._error)
            self._waiter = None
        self._wake_reader()

    # The request's body, sent while it arrives.

    async def _send(self, body: Upload, length: int | None) -> None:
        sent = 0
        last = b""
        while piece := await body.read():
            sent += len(piece)
            if length is None:
                self._transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            elif sent < length:
                self._transport.write(piece)
            elif sent == length:
                last = piece  # with it the request would be a whole one, and more may come
            else:
                # sent on, the surplus would be read as the next request of this connection
                raise Refused(Reason.BAD_REQUEST, f"the body is longer than its content-length, {length}")
            if self._writable is not None:
                await self._writable
        if length is not None and sent != length:
            raise Refused(
                Reason.BAD_REQUEST, f"the body ended after {sent} of the {length} bytes of its content-length"
            )
        self._transport.write(b"0\r\n\r\n" if length is None else last)

    def _upload_done(self, task: asyncio.Task[None]) -> None:
        self._upload = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.close(error if isinstance(error, Exception) else None)

    # The reply's body, read at the client's pace. ReplyBody calls it.

    @property
    def first(self) -> bytes:
        """What of the body was read first and is not taken yet."""
        return self._reader.first

    async def next_piece(self, until: float = inf) -> bytes | None:
        """The next bytes of the body; b"" at its end, when the connection goes back to its owner.

        None: it is an event stream, and nothing came until `until`, monotonic seconds.
        """
        reader = self._reader
        while not reader.buffered:
            if reader.complete:
                self._settle()
                return b""
            if self._error is not None:
                raise self._error
            if self._events and until < inf:
                if monotonic() >= until:
                    return None
                self._watch(until)
            self._more = self._loop.create_future()
            await self._more
        piece = reader.take()
        if self._paused and self._phase is _ANSWERING:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def _advance(self) -> None:
        """What was read may have completed something."""
        reader = self._reader
        if self._phase is _ASKED:
            if reader.complete:
                self._deadline = inf
                self._answer(reader.take())
                self._settle()
                return
            if reader.buffered and self._in_pieces():
                self._phase = _ANSWERING
                self._answer(ReplyBody(self))
        if self._phase is _ANSWERING:
            if reader.complete:
                self._deadline = inf
            self._wake_reader()
            if reader.buffered > MOST_BUFFERED and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def _in_pieces(self) -> bool:
        """Whether the rest of the body is handed on as it comes. An event stream has met its deadline with this."""
        if self._takes_events and self._reader.said.event_stream:
            self._events = True
            self._deadline = inf
            self._first_byte = monotonic()  # of a token: heads of streams come long before
        length = self._reader.content_length
        return self._events or length is None or length > WHOLE_REPLY

    def _answer(self, body: bytes | ReplyBody) -> None:
        waiter, self._waiter = self._waiter, None
        assert waiter is not None and self._first_byte is not None  # the phase says so
        if not waiter.done():  # done: cancelled, and the ReplyBody closes the connection as it is dropped here
            reader = self._reader
            waiter.set_result(Answer(reader.status, reader.said, body, self._first_byte))

    def _settle(self) -> None:
        """The reply was taken to its end."""
        if self._phase is _CLOSED:
            return
        self._phase = _IDLE
        if self._upload is None and self._reader.keep_alive:
            self._owner.keep(self)
        else:
            self.close()  # of an early reply: the rest of the request's body is not worth sending

    def _wake_reader(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    # The deadline: one timer for the connection's life, which looks again when it fires.

    def _watch(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if monotonic() >= self._deadline:
            if self._events:
                self._wake_reader()
                return
            self.close(Refused(Reason.DEADLINE, "the backend had not answered when the request's time was up"))
        elif self._deadline < inf:
            self._watch(self._deadline)

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # what create_connection makes, under uvloop too
        self._transport.set_write_buffer_limits(high=MOST_UNSENT)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._room[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """What was read."""
        if self._phase is not _ASKED and self._phase is not _ANSWERING:
            self.close()  # nobody asked: what these bytes answer can only be guessed
            return
        if self._first_byte is None:
            self._first_byte = monotonic()
        try:
            self._reader.feed(data)
        except Garbage as garbage:
            self.close(Refused(Reason.BACKEND_FAILED, f"the backend's reply is not HTTP/1.1: {garbage}"))
            return
        self._advance()

    def eof_received(self) -> None:
        self._peer_closed()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self._peer_closed()
        self.close(self._broken_off())
        self._owner.lost(self)

    def _peer_closed(self) -> None:
        if self._waiting_for_more() and self._reader.end():
            self._reader.keep_alive = False
            self._advance()
        else:
            self.close(self._broken_off())

    def _waiting_for_more(self) -> bool:
        return self._phase is _ASKED or self._phase is _ANSWERING

    def _broken_off(self) -> Refused:
        if self._first_byte is None and self._exchanges > 1:
            return Stale(Reason.BACKEND_FAILED, "the backend closed a kept connection instead of answering")
        return Refused(Reason.BACKEND_FAILED, "the backend closed the connection before its reply was complete")

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
