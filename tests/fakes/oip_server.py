# SPDX-License-Identifier: Apache-2.0
"""A small Open Inference Protocol server that a test kills, revives, holds back and lets go."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

BODY = b'{"model_name":"m","outputs":[{"name":"y","datatype":"INT32","shape":[1],"data":[%d]}]}'
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)


class OipServer:
    """Answers every inference with `number`, and is ready, unless the test says otherwise."""

    def __init__(self, number: int, host: str = "127.0.0.1") -> None:
        self.number = number
        self.host = host
        self.port = 0
        self.asked = 0
        """Inferences that came, answered or not."""
        self.ready = True
        self.let_go = asyncio.Event()
        """While not set, nothing is answered, not even whether it is ready."""
        self.let_go.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> None:
        """Listen; on the port it had, where it had one."""
        self._server = await asyncio.start_server(self._connected, self.host, port or self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """Close the port and every connection."""
        if self._server is None:
            return
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        self._server = None
        await asyncio.sleep(0)  # the aborted transports' last callbacks

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while True:
                await self._answer(reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        await reader.readexactly(int(length[1]) if length else 0)
        inference = head.startswith(b"POST")
        self.asked += inference
        await self.let_go.wait()
        status, body = (b"200 OK", BODY % self.number) if inference else (b"200 OK" if self.ready else b"503 No", b"{}")
        kind = b"content-type: application/json"
        writer.write(b"HTTP/1.1 %b\r\n%b\r\ncontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body))
        await writer.drain()
