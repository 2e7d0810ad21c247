# SPDX-License-Identifier: Apache-2.0
"""What the supervisor and one worker say to each other: questions with answers and one-way words, over a socket pair.

A message is its length in four bytes and MessagePack. Everything is bounded: a message, how many questions are worked
on at once, how much may wait for a side that does not read. The end of the stream means that the other side is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import msgspec

__all__ = ["LONGEST", "Channel", "ChannelClosed", "ChannelError", "HandedChannel", "Handler", "Told", "channel_pair"]

LONGEST = 16 << 20
"""Bytes of one message: the metrics of a worker with a thousand pools have a tenth of it."""
MOST_AT_ONCE = 64
"""Questions that one side works on at once."""
_GOODBYE_S = 1.0
"""For the other side to read what was said before this one hung up."""
_LENGTH = struct.Struct("!I")

Handler = Callable[[Any], Awaitable[object]]
"""Answers one kind of question; what it raises is told to who asked, as text."""
Told = Callable[[Any], None]
"""Hears one kind of word; it must not raise."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ChannelError(ConnectionError):
    """A question that got no answer: the text is for people."""


class ChannelClosed(ChannelError):  # noqa: N818  says what is the case
    """The other side is gone, or hung up on."""


class _Ask(msgspec.Struct, array_like=True, tag="ask"):
    number: int
    kind: str
    payload: Any


class _Answer(msgspec.Struct, array_like=True, tag="answer"):
    number: int
    payload: Any
    error: str | None


class _Tell(msgspec.Struct, array_like=True, tag="tell"):
    kind: str
    payload: Any


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Ask | _Answer | _Tell)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends; the second is for a process that is started with its descriptor."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class HandedChannel(msgspec.Struct, frozen=True, kw_only=True):
    """What another program in this process needs to go on with this end."""

    fd: int
    next_number: int
    """Of a question: an answer to one that this program has asked must not pass for another's."""
    held: bytes
    """The beginning of a message that has not come whole."""


class Channel:
    """One end. handlers: what the other side may ask, by kind; told: what it may say, by kind. Both ends may do both.

    Handlers and listeners may be added until `start`; what comes before waits in the kernel.
    """

    def __init__(
        self, sock: socket.socket, *, handlers: Mapping[str, Handler] = _NOTHING, told: Mapping[str, Told] = _NOTHING
    ) -> None:
        self._sock = sock
        self.handlers: dict[str, Handler] = dict(handlers)
        self.told: dict[str, Told] = dict(told)
        self._transport: asyncio.Transport | None = None
        self._over = asyncio.Event()
        self._held = bytearray()
        self._working: set[asyncio.Task[None]] = set()
        self._number = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._closed = asyncio.Event()
        self.why = ""

    def __repr__(self) -> str:
        return (
            f"<Channel {'closed' if self.closed else 'open'}, {len(self._asked)} asked, {len(self._working)} to answer>"
        )

    @property
    def closed(self) -> bool:
        """Whether the other side is gone; `why` says what ended it."""
        return self._closed.is_set()

    def fileno(self) -> int:
        """Of its socket."""
        return self._sock.fileno()

    async def start(self) -> None:
        """Listen, on the running loop."""
        self._sock.setblocking(False)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: _End(self), sock=self._sock)
        self.fed(b"")

    @classmethod
    def adopt(cls, handed: HandedChannel) -> Channel:
        """Go on with what another program handed over."""
        os.set_inheritable(handed.fd, False)
        channel = cls(socket.socket(fileno=handed.fd))
        channel._number = handed.next_number
        channel._held += handed.held
        return channel

    def handed(self) -> HandedChannel:
        """For another program in this process, which must start before anything here runs again. Raises ChannelError:
        not now, for something is still to be written."""
        if self._transport is None or self.closed or self._transport.get_write_buffer_size():
            raise ChannelError(self.why or "the other side does not read")
        os.set_inheritable(self._sock.fileno(), True)
        return HandedChannel(fd=self._sock.fileno(), next_number=self._number, held=bytes(self._held))

    async def ask(self, kind: str, payload: object = None, *, timeout_s: float) -> Any:
        """The answer. Raises ChannelError (the other side's complaint, or nobody there) or TimeoutError."""
        number, self._number = self._number, self._number + 1
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._send(_Ask(number, kind, payload))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise TimeoutError(f"no answer to {kind} within {timeout_s:g} s") from None
        finally:
            del self._asked[number]

    def tell(self, kind: str, payload: object = None) -> None:
        """Say it; whether it is heard is not known. Of a closed channel it is not."""
        with suppress(ChannelClosed):
            self._send(_Tell(kind, payload))

    async def wait_closed(self) -> None:
        """Until the other side is gone, or `close` was called."""
        await self._closed.wait()

    async def close(self) -> None:
        """Hang up, and let go of the socket."""
        self.end("this side hung up")
        tasks = list(self._working)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is None:
            self._sock.close()
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._over.wait()  # until what was said is in the kernel
        except TimeoutError:
            self._transport.abort()

    def fed(self, data: bytes) -> None:
        """Bytes have come."""
        held = self._held
        held += data
        try:
            while not self.closed and len(held) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(held)
                if length > LONGEST:
                    raise ValueError(f"a message of {length} bytes")
                end = _LENGTH.size + length
                if len(held) < end:
                    return
                message = bytes(held[_LENGTH.size : end])
                del held[:end]
                self._hear(_DECODER.decode(message))
        except (ValueError, msgspec.MsgspecError) as error:
            self.end(f"the other side cannot be understood: {error}")

    def over(self) -> None:
        """The socket is closed."""
        self.end("the other side is gone")
        self._over.set()

    def _send(self, message: _Ask | _Answer | _Tell) -> None:
        if self._transport is None or self.closed:
            raise ChannelClosed(self.why or "the channel is not open")
        encoded = _ENCODER.encode(message)
        if len(encoded) > LONGEST:
            raise ChannelError(f"a message of {len(encoded)} bytes is longer than {LONGEST}")
        if self._transport.get_write_buffer_size() > LONGEST:
            self.end(f"the other side has not read {LONGEST} bytes")
            raise ChannelClosed(self.why)
        self._transport.write(_LENGTH.pack(len(encoded)) + encoded)

    def _hear(self, message: _Ask | _Answer | _Tell) -> None:
        match message:
            case _Answer(number, payload, error):
                answer = self._asked.get(number)
                if answer is not None and not answer.done():  # else: it came too late
                    answer.set_result(payload) if error is None else answer.set_exception(ChannelError(error))
            case _Tell(kind, payload):
                hear = self.told.get(kind)
                if hear is not None:  # else: a newer version's word
                    hear(payload)
            case _Ask(number) if len(self._working) >= MOST_AT_ONCE:
                self._answer(_Answer(number, None, f"more than {MOST_AT_ONCE} questions at once"))
            case _Ask():
                task = asyncio.create_task(self._work(message))
                self._working.add(task)
                task.add_done_callback(self._working.discard)

    async def _work(self, asked: _Ask) -> None:
        payload, error = None, None
        handler = self.handlers.get(asked.kind)
        try:
            if handler is None:
                raise ChannelError(f"{asked.kind} is not known here")
            payload = await handler(asked.payload)
        except Exception as raised:  # noqa: BLE001  it is theirs who asked
            error = str(raised) or type(raised).__name__
        self._answer(_Answer(asked.number, payload, error))

    def _answer(self, answer: _Answer) -> None:
        with suppress(ChannelClosed):
            try:
                self._send(answer)
            except (ChannelError, TypeError, ValueError) as raised:  # too long, or nothing that MessagePack can say
                if isinstance(raised, ChannelClosed):
                    raise
                self._send(_Answer(answer.number, None, str(raised)))

    def end(self, why: str) -> None:
        """Hang up, without waiting for anything; the first reason stays."""
        if self.closed:
            return
        self.why = why
        self._closed.set()
        if self._transport is not None:
            self._transport.close()
        for each in self._asked.values():
            if not each.done():
                each.set_exception(ChannelClosed(why))


class _End(asyncio.Protocol):
    """What the loop tells of the socket."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def data_received(self, data: bytes) -> None:
        self._channel.fed(data)

    def eof_received(self) -> None:
        self._channel.end("the other side is gone")

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel.over()
