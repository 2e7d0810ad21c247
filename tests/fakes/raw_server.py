# SPDX-License-Identifier: Apache-2.0
"""A TCP server without a protocol: the test reads what came and says, byte for byte, what goes back."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 10.0


class Peer:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        """The next request's head, the empty line included."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(count)

    async def request(self) -> tuple[bytes, bytes]:
        """The next request's head and body; the body as it was framed if that is chunked."""
        head = await self.head()
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name == b"content-length":
                return head, await self.read(int(value))
            if name == b"transfer-encoding":
                async with asyncio.timeout(PATIENCE_S):
                    return head, await self.reader.readuntil(b"0\r\n\r\n")
        return head, b""

    async def end(self) -> bytes:
        """What came until the other side closed, whether in good order or by reset."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    def say(self, data: bytes) -> None:
        """Send it."""
        self.writer.write(data)

    def close(self) -> None:
        """Close in good order, after all that was said."""
        self.writer.close()

    def reset(self) -> None:
        """Close with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class RawServer:
    """Listens on a free loopback port. `accept` waits for the next connection."""

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext | None = None, *, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)
        self._peers.put_nowait(Peer(reader, writer))

    async def accept(self) -> Peer:
        async with asyncio.timeout(PATIENCE_S):
            return await self._peers.get()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # the aborted transports' last callbacks
