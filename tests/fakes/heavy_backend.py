# SPDX-License-Identifier: Apache-2.0
"""A backend that owes its clients much, as fast as they take it; that reads when told to; that streams without an end.

What it sends says where it belongs, so that a client can tell whether anything is missing or was changed in order.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count, cycle

__all__ = ["MIB", "OWED", "HeavyBackend", "owed", "serving"]

MIB = 1 << 20
OWED = 100 * MIB
PIECE = 64 * 1024
_WORD = 16
_FRAMINGS = ("content-length", "chunked", "until the connection's end")


def owed(start: int, stop: int) -> bytes:
    """These bytes of every reply: words that say which piece they are of. It begins as JSON does."""
    pieces = b"".join(map(_piece, range(start // PIECE, -(-stop // PIECE))))
    begin = start % PIECE
    return pieces[begin : begin + stop - start]


def _piece(number: int) -> bytes:
    return b"{%014d\n" % number * (PIECE // _WORD)


class HeavyBackend:
    """Answers model `down` with `owes` bytes, `up` with how many it got, and chat completions with tokens for ever.

    reading: unset, it reads no more of a request for `up` than its head.
    """

    def __init__(self) -> None:
        self.port = 0
        self.owes = OWED
        self.asked = 0
        self.sent = self.got = 0
        self.reading = asyncio.Event()
        self._framings = cycle(_FRAMINGS)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Serve on a free port of loopback."""
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)  # what it does not read stays where it is
        self.port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=sock, limit=16 * 1024)

    async def close(self) -> None:
        """Hang up on everybody."""
        assert self._server is not None
        self._server.close()
        self.reading.set()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        self._writers.discard(writer)
        writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be asked again."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        path = head.split(b" ", 2)[1]
        self.asked += 1
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        if b"/up/" in path:
            await self.reading.wait()
        got = 0
        while got < length and (data := await reader.read(PIECE)):
            got += len(data)
            self.got += len(data)
        if b"/up/" in path:
            answer = b'{"bytes": %d}' % got
            writer.write(_head(b"application/json", b"content-length: %d\r\n" % len(answer)) + answer)
            return True
        if path.startswith(b"/v1/"):
            await self._tokens(writer)
            return False
        return await self._reply(writer)

    async def _reply(self, writer: asyncio.StreamWriter) -> bool:
        framing = next(self._framings)
        field = {
            "content-length": b"content-length: %d\r\n" % self.owes,
            "chunked": b"transfer-encoding: chunked\r\n",
        }.get(framing, b"connection: close\r\n")
        writer.write(_head(b"application/json", field))
        for number in range(self.owes // PIECE):
            data = _piece(number)
            writer.write(b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data)
            self.sent += len(data)
            await writer.drain()
        if framing == "chunked":
            writer.write(b"0\r\n\r\n")
        if field.startswith(b"connection"):
            writer.close()
            await writer.wait_closed()
            return False
        return True

    async def _tokens(self, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(b"text/event-stream", b"transfer-encoding: chunked\r\n"))
        for number in count():
            event = b"data: {%0512d}\n\n" % number
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            self.sent += len(event)
            await writer.drain()


def _head(kind: bytes, field: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n" % (kind, field)


@asynccontextmanager
async def serving() -> AsyncIterator[HeavyBackend]:
    """One for as long as the block takes."""
    backend = HeavyBackend()
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()
