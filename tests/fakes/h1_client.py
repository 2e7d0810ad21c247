# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 client over TLS that tests write by hand: it reads when told to, and leaves as rudely as told to."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class H1Answer:
    """A whole answer."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The reply's JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document


class H1Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, path: str, body: bytes = b"{}", **fields: str) -> None:
        """A whole request."""
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n{named}\r\n"
        self.writer.write(head.encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and fields of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.strip().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), fields

    async def answer(self) -> H1Answer:
        """The next answer, which says its length."""
        status, fields = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            return H1Answer(status, fields, await self.reader.readexactly(int(fields["content-length"])))

    async def ask(self, path: str, body: bytes = b"{}", **fields: str) -> H1Answer:
        """A request and all of its answer."""
        self.send(path, body, **fields)
        return await self.answer()

    async def chunk(self) -> bytes:
        """The next chunk of a reply in chunks; b"" for the last one."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """What comes until the gateway hangs up, however it does."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except (ConnectionError, ssl.SSLError):
                return b""

    def leave(self) -> None:
        """At once."""
        self.writer.transport.abort()


@asynccontextmanager
async def h1_client(address: tuple[str, int], folder: Path, *, from_host: str | None = None) -> AsyncIterator[H1Client]:
    """A connection to a gateway whose development certificate is in this folder. from_host: the client's address."""
    context = ssl.create_default_context(cafile=folder / "development.pem")
    local = None if from_host is None else (from_host, 0)
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname="localhost", local_addr=local)
    try:
        yield H1Client(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)  # the aborted transport's last callbacks
