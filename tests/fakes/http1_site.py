# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 door on loopback with a walk that tests script, and clients for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from proxy.bind import bind_tcp
from proxy.listeners.http1 import Http1Door
from tests.fakes.walk import Answer, FakeWalk

INFER = "/v2/models/m/infer"


class Site:
    """One door, its walk, and a client."""

    def __init__(self, answer: Answer) -> None:
        self.walk = FakeWalk(answer)
        self.door = Http1Door(
            self.walk,
            listener="http",
            max_body=1 << 20,
            clock=lambda: 5.0,
            models=lambda: [("digits", True), ("faces", False)],
        )
        self.session = aiohttp.ClientSession()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        sock = bind_tcp("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        await self.door.start(sock)

    async def ask(
        self, path: str = INFER, body: object = b"{}", method: str = "POST", **fields: str
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.session.request(method, url, data=body, headers=headers) as reply:
            return reply, await reply.read()

    async def raw(self, request: bytes) -> bytes:
        """Send these bytes and read until the door hangs up."""
        reader, writer = await self.dial()
        writer.write(request)
        return await reader.read()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        await self.session.close()
        for writer in self._writers:
            writer.transport.abort()
        await self.door.close()


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until it holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)
