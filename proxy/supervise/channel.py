# SPDX-License-Identifier: Apache-2.0
"""What the supervisor and one worker say to each other: questions with answers and one-way words, over a socket pair.

A message is its length in four bytes and MessagePack. Everything is bounded: a message, how many questions are worked
on at once, how much may wait for a side that does not read. The end of the stream means that the other side is gone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from types import MappingProxyType
from typing import Any

import msgspec

__all__ = ["LONGEST", "Channel", "ChannelClosed", "ChannelError", "Handler", "Told", "channel_pair"]

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
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._numbers = count()
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
        # The limit is of readuntil() only; it also is where reading from the kernel pauses, so it is kept small.
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
        self._reading = asyncio.create_task(self._read(reader))

    async def ask(self, kind: str, payload: object = None, *, timeout_s: float) -> Any:
        """The answer. Raises ChannelError (the other side's complaint, or nobody there) or TimeoutError."""
        number = next(self._numbers)
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
        tasks = [each for each in (self._reading, *self._working) if each is not None]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end("this side hung up")
        if self._writer is None:
            self._sock.close()
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._writer.wait_closed()  # until what was said is in the kernel
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    def _send(self, message: _Ask | _Answer | _Tell) -> None:
        if self._writer is None or self.closed:
            raise ChannelClosed(self.why or "the channel is not open")
        encoded = _ENCODER.encode(message)
        if len(encoded) > LONGEST:
            raise ChannelError(f"a message of {len(encoded)} bytes is longer than {LONGEST}")
        if self._writer.transport.get_write_buffer_size() > LONGEST:
            self._end(f"the other side has not read {LONGEST} bytes")
            raise ChannelClosed(self.why)
        self._writer.write(_LENGTH.pack(len(encoded)) + encoded)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > LONGEST:
                    raise ValueError(f"a message of {length} bytes")
                self._hear(_DECODER.decode(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, OSError):
            why = "the other side is gone"
        except (ValueError, msgspec.MsgspecError) as error:
            why = f"the other side cannot be understood: {error}"
        self._end(why)

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

    def _end(self, why: str) -> None:
        if self.closed:
            return
        self.why = why
        self._closed.set()
        if self._writer is not None:
            self._writer.close()
        for each in self._asked.values():
            if not each.done():
                each.set_exception(ChannelClosed(why))
