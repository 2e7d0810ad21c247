# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 door on loopback with a walk that tests script, and clients for it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from proxy.bind import bind_tcp
from proxy.certificate import development_certificate
from proxy.listeners.http1 import Http1Door, Http1Plan
from proxy.listeners.marks import Marks
from proxy.listeners.tcp import tls_context
from tests.fakes.walk import Answer, FakeWalk

INFER = "/v2/models/m/infer"
PLAN = Http1Plan(
    listener="http",
    transport="http",
    max_body=1 << 20,
    models=lambda: [("digits", True), ("faces", False)],
)


class Site:
    """One door, its walk, and a client. secure: a folder for the certificate of a door that speaks TLS.

    changes: of the door's plan.
    """

    def __init__(
        self, answer: Answer, *, secure: Path | None = None, marks: Marks | None = None, **changes: Any
    ) -> None:
        self.walk = FakeWalk(answer)
        self.now = 5.0
        self.client_tls: ssl.SSLContext | None = None
        if secure is not None:
            certificate, key = development_certificate(secure)
            changes["tls"] = tls_context(certificate, key)
            self.client_tls = ssl.create_default_context(cafile=certificate)
        self.door = Http1Door(self.walk, replace(PLAN, **changes), clock=lambda: self.now, marks=marks)
        self.session = aiohttp.ClientSession()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        sock = bind_tcp("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.door.start(sock)

    async def ask(
        self, path: str = INFER, body: object = b"{}", method: str = "POST", **fields: str
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        url = f"{'http' if self.client_tls is None else 'https'}://127.0.0.1:{self.port}{path}"
        tls = self.client_tls or True
        async with self.session.request(method, url, data=body, headers=headers, ssl=tls) as reply:
            return reply, await reply.read()

    async def raw(self, request: bytes) -> bytes:
        """Send these bytes and read until the door hangs up."""
        reader, writer = await self.dial()
        writer.write(request)
        return await reader.read()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.client_tls)
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
