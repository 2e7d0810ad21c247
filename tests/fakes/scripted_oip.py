# SPDX-License-Identifier: Apache-2.0
"""An Open Inference Protocol server that answers each inference as a test's function says, and sees who hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 30.0
GOOD = b'{"model_name":"m","outputs":[{"name":"y","datatype":"INT32","shape":[1],"data":[%d]}]}'
"""With the number that it answers."""


@dataclass(slots=True, eq=False)
class Asked:
    """One inference that came."""

    fields: dict[str, str]
    body: bytes
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway hung up before it had its answer."""
    answered: bool = False


Answer = Callable[[Asked], Awaitable[tuple[int, bytes]]]
"""Status and body."""


def saying(status: int, body: bytes) -> Answer:
    """At once, whatever is asked."""

    async def answer(_: Asked) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        return status, body

    return answer


def after(seconds: float, number: int = 1) -> Answer:
    """A good answer when so long has passed."""

    async def answer(_: Asked) -> tuple[int, bytes]:
        await asyncio.sleep(seconds)
        return 200, GOOD % number

    return answer


async def never(_: Asked) -> tuple[int, bytes]:
    """No answer."""
    await asyncio.Event().wait()
    raise AssertionError


class ScriptedOip:
    """Listens on a free loopback port; `asked` keeps every inference in order of arrival. Ready, whoever asks."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.at_once = 0
        """Inferences without an answer now."""
        self.most_at_once = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def has(self, count: int) -> None:
        """Wait until so many inferences are here without an answer."""
        async with asyncio.timeout(PATIENCE_S):
            while self.at_once != count:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)

    @property
    def endpoint(self) -> str:
        """For a config, without the braces."""
        return f"oip: 'http://127.0.0.1:{self.port}'"

    @property
    def name(self) -> str:
        """As the gateway calls it."""
        return f"oip:127.0.0.1:{self.port}"

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = b""
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    begun = await self._exchange(begun, reader, writer)
        finally:
            writer.transport.abort()

    async def _exchange(self, begun: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """One request; the first byte of the next one."""
        head = begun + await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        asked = Asked(fields, await _body(fields, reader))
        if not first.startswith("POST"):
            _say(writer, 200, b"{}")
            return b""
        self.asked.append(asked)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        answering = asyncio.ensure_future(self.answer(asked))
        listening = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                asked.gone.set()
                raise ConnectionResetError
            asked.answered = True
            _say(writer, *answering.result())
        finally:
            self.at_once -= 1
            answering.cancel()
            if not asked.answered:
                listening.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        if not (begun := await listening):
            raise ConnectionResetError
        return begun


async def _body(fields: dict[str, str], reader: asyncio.StreamReader) -> bytes:
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields.get("content-length", "0")))
    body = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:size]
    await reader.readexactly(2)
    return bytes(body)


def _say(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = b"HTTP/1.1 %d Scripted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % (status, len(body)) + body)
