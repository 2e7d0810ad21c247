# SPDX-License-Identifier: Apache-2.0
"""A server with the OpenAI-compatible API, scripted: delays, silences, breaks, garbage, refusals."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 10.0


async def _at_once(number: int) -> None:
    await asyncio.sleep(0)


@dataclass(slots=True)
class Script:
    """What the server does with the requests that come from now on."""

    tokens: tuple[str, ...] = ("Hel", "lo", "!")
    """The words of a completion; each is one event and one chunk of a stream."""
    pace: Callable[[int], Awaitable[None]] = _at_once
    """Awaited before the token of this number, the answer's head going out before token 0; of an answer that is not
    a stream, with 0 before all of it."""
    refuse: int | None = None
    """A status to answer everything but /health with."""
    retry_after: str | None = None
    garbage: bytes | None = None
    """Answered with status 200 instead of JSON."""
    break_after: int | None = None
    """The connection is closed after so many tokens, without the last chunk."""
    end_after: int | None = None
    """The stream ends in good order after so many tokens, but without `data: [DONE]`."""
    stall_after: int | None = None
    """Nothing more comes after so many tokens, until the client is gone."""
    models: tuple[str, ...] = ("tiny",)
    health: int = 200
    """The status of GET /health; 404 where there is none."""


@dataclass(slots=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    fields: dict[str, str]
    body: bytes
    tokens_sent: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client hung up before its answer was complete."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class OpenAiServer:
    """Listens on a free loopback port; `requests` keeps what came, in order of arrival."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.requests: list[Seen] = []
        self.port = 0
        self.connections = 0
        """That came since the start."""
        self.streaming = 0
        """Answers under way, streams or not."""
        self._scheme = "http"
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def start(self, tls: ssl.SSLContext | None = None, *, port: int = 0) -> None:
        self._scheme = "http" if tls is None else "https"
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def seen(self, count: int) -> Seen:
        """The request of this number, counted from 1, once it is here."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.requests) < count:
                await asyncio.sleep(0.001)
        return self.requests[count - 1]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Request after request, until the client is gone or the script breaks off."""
        begun = b""
        try:
            while True:
                seen = await _request(begun, reader)
                self.requests.append(seen)
                self.streaming += 1
                answering = asyncio.ensure_future(_Answer(writer, seen, self.script).give())
                answering.add_done_callback(self._answered)
                listening = asyncio.ensure_future(reader.read(1))
                try:
                    await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
                    left = listening.done() and (listening.exception() is not None or not listening.result())
                    if not answering.done() and left:  # by a reset or by a goodbye
                        seen.gone.set()
                        return
                    if not await answering:
                        return
                    begun = await listening
                finally:
                    answering.cancel()
                    listening.cancel()
                    await asyncio.gather(answering, listening, return_exceptions=True)
                if not begun:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left between two requests
        finally:
            writer.transport.abort()

    def _answered(self, _: object) -> None:
        self.streaming -= 1


async def _request(begun: bytes, reader: asyncio.StreamReader) -> Seen:
    head = begun + await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(fields.get("content-length", "0")))
    return Seen(method, path, fields, body)


class _Answer:
    """One exchange, as the script wants it."""

    def __init__(self, writer: asyncio.StreamWriter, seen: Seen, script: Script) -> None:
        self._writer = writer
        self._seen = seen
        self._script = script

    async def give(self) -> bool:
        """Whether the connection is good for another request."""
        seen, script = self._seen, self._script
        if seen.path == "/health":
            self._whole(script.health, b"")
        elif script.refuse is not None:
            self._whole(script.refuse, _error(script.refuse))
        elif script.garbage is not None:
            self._whole(200, script.garbage)
        elif seen.path == "/v1/models":
            listed = [{"id": each, "object": "model", "created": 1, "owned_by": "fake"} for each in script.models]
            self._whole(200, json.dumps({"object": "list", "data": listed}).encode())
        elif seen.path == "/v1/embeddings":
            await self._embedding()
        elif seen.path in ("/v1/chat/completions", "/v1/completions"):
            return await (self._stream() if seen.json.get("stream") else self._completion())
        else:
            self._whole(404, _error(404))
        await self._writer.drain()
        return True

    async def _embedding(self) -> None:
        await self._script.pace(0)
        vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        document = {"object": "list", "model": self._seen.json["model"], "data": [vector], "usage": usage}
        self._whole(200, json.dumps(document).encode())

    async def _completion(self) -> bool:
        await self._script.pace(0)
        self._whole(200, json.dumps(self._document("".join(self._script.tokens), stream=False)).encode())
        await self._writer.drain()
        return True

    async def _stream(self) -> bool:
        script = self._script
        self._writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number, token in enumerate(script.tokens):
            if number == script.break_after:
                return False
            if number == script.stall_after:
                await asyncio.Event().wait()
            if number == script.end_after:
                break
            await script.pace(number)
            self._chunk(b"data: " + json.dumps(self._document(token, stream=True)).encode() + b"\n\n")
            await self._writer.drain()
            self._seen.tokens_sent += 1
        else:
            self._chunk(b"data: [DONE]\n\n")
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        return True

    def _document(self, text: str, *, stream: bool) -> dict[str, Any]:
        chat = self._seen.path.startswith("/v1/chat/")
        finish = None if stream else "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if chat:
            choice["delta" if stream else "message"] = {"role": "assistant", "content": text}
        else:
            choice |= {"text": text, "logprobs": None}
        kind = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
        named = {"id": "c-1", "object": kind, "created": 1, "model": self._seen.json["model"]}
        usage = {} if stream else {"usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}}
        return named | {"choices": [choice]} | usage

    def _chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _whole(self, status: int, body: bytes) -> None:
        more = b"" if self._script.retry_after is None else b"retry-after: %b\r\n" % self._script.retry_after.encode()
        head = b"HTTP/1.1 %d Scripted\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        self._writer.write(head % (status, more, len(body)) + body)


def _error(status: int) -> bytes:
    return json.dumps({"error": {"message": "scripted", "type": "fake", "param": None, "code": str(status)}}).encode()
