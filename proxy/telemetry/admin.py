# SPDX-License-Identifier: Apache-2.0
"""The admin address: metrics, health and what the gateway knows of itself, over HTTP/1.1, reading only."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import msgspec
from aiohttp import web

from proxy.bind import bind_tcp

__all__ = ["AdminServer", "Document", "NotReady", "Page"]

Document = Callable[[], Awaitable[object]]
"""What answers a path under /v1/: something that JSON can tell."""
Page = Callable[[str], Awaitable[tuple[bytes, str]]]
"""The metrics as text, in the format that an Accept field prefers; and its content type."""
NotReady = Callable[[], Awaitable[Sequence[str]]]
"""What keeps the gateway from serving now, one name each; nothing: it is ready."""
_Answer = Callable[[web.BaseRequest], Awaitable[web.Response]]

_SHUTDOWN_S = 1.0  # a scrape takes milliseconds
_KEEPALIVE_S = 75.0  # scrapers come back every 15 to 60 s


class AdminServer:
    """/metrics, /healthz, /readyz and documents on one address. documents: by path."""

    def __init__(
        self,
        host: str,
        port: int,
        page: Page,
        not_ready: NotReady,
        documents: Mapping[str, Document] = MappingProxyType({}),
    ) -> None:
        self._address = host, port
        self._sock: socket.socket | None = None
        self._page = page
        self._not_ready = not_ready
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._pages: dict[str, _Answer] = {
            "/metrics": self._metrics_page,
            "/healthz": self._health,
            "/readyz": self._readiness,
        }
        self._pages |= {path: partial(_document, tell) for path, tell in documents.items()}

    def __repr__(self) -> str:
        return "<AdminServer {}:{} {}>".format(*self._address, "serving" if self._server else "stopped")

    @property
    def bound(self) -> tuple[str, int]:
        """Where it serves; once started, port 0 has become a real one."""
        return self._address

    async def start(self) -> None:
        """Bind and serve. Raises OSError with a line that names the address."""
        sock = self._sock = self._sock or bind_tcp(*self._address)
        self._address = sock.getsockname()[:2]
        self._http = web.Server(self._answer, access_log=None, keepalive_timeout=_KEEPALIVE_S)
        self._server = await asyncio.get_running_loop().create_server(self._http, sock=sock)

    def handed(self) -> int:
        """The socket where it listens, for another program in this process."""
        assert self._sock is not None
        os.set_inheritable(self._sock.fileno(), True)
        return self._sock.fileno()

    def adopt(self, fd: int) -> None:
        """Before `start`, which will bind nothing then."""
        os.set_inheritable(fd, False)
        self._sock = socket.socket(fileno=fd)

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None and self._http is not None:
            self._server.close()
            self._http.pre_shutdown()
            await self._http.shutdown(_SHUTDOWN_S)
            self._server = self._http = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = self._pages.get(request.path)
        if answer is None:
            return _json(404, {"error": "no such path", "paths": sorted(self._pages)})
        if request.method != "GET":
            return _json(405, {"error": "reading only: GET"}, {"Allow": "GET"})
        return await answer(request)

    async def _metrics_page(self, request: web.BaseRequest) -> web.Response:
        body, content_type = await self._page(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return _json(200, {"alive": True})  # whoever can say so is: the loop runs

    async def _readiness(self, _: web.BaseRequest) -> web.Response:
        missing = list(await self._not_ready())
        return _json(503 if missing else 200, {"ready": not missing, "not_ready": missing})


async def _document(tell: Document, _: web.BaseRequest) -> web.Response:
    return _json(200, await tell())


def _json(status: int, document: object, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(document)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
