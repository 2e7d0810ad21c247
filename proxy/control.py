# SPDX-License-Identifier: Apache-2.0
"""The admin Unix socket: what changes a running gateway, for root and the gateway's own user and nobody else.

HTTP/1.1 with JSON, one request a connection, so that curl and a few lines of any language can use it. Everything is
bounded: who may talk is asked of the kernel before a byte is read.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import msgspec
import structlog

from proxy.bind import bind_unix
from proxy.endpoints import Commands, NotDone

__all__ = ["Control", "Upgrades"]

MODE = 0o660
"""Of the socket's file; peer credentials decide all the same."""
EXCHANGE_S = 5.0
"""Longest time for one request and its answer."""
MOST_CONNECTIONS = 16
LONGEST_HEAD = 8 * 1024
LONGEST_BODY = 64 * 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_log = structlog.get_logger("inferlane.control")


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it."""

    pid: int
    uid: int


class Upgrades(Protocol):
    """Starts the next version beside this one, and tells how that goes."""

    def begin(self) -> object:
        """Start one; how it goes, as data. Raises NotDone: not now."""
        ...

    def status(self) -> object:
        """How the last one went, or goes."""
        ...


class Control:
    """Serves one path. `start` binds it, `close` ends what is in flight and removes it.

    owner: the user who is let in besides root. upgrades: where the gateway can replace itself.
    """

    def __init__(
        self, path: Path, commands: Commands, *, owner: int | None = None, upgrades: Upgrades | None = None
    ) -> None:
        self._path = path
        self._commands = commands
        self._upgrades = upgrades
        self._allowed = {0, os.geteuid() if owner is None else owner}
        self._server: asyncio.Server | None = None
        self._exchanges: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Control {self._path} {'serving' if self._server else 'stopped'}, {len(self._exchanges)} in flight>"

    async def start(self) -> None:
        """Bind and serve. Raises OSError with a line that names the path."""
        sock = bind_unix(self._path)
        try:
            os.chmod(self._path, MODE)  # before anybody can connect: it does not listen yet
            self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=LONGEST_HEAD)
        except OSError as error:
            sock.close()
            self._path.unlink(missing_ok=True)
            raise OSError(error.errno, f"cannot serve unix {self._path}: {error.strerror or error}") from None
        _log.info("control_listening", socket=str(self._path))

    async def close(self) -> None:
        """Stop serving."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        self._path.unlink(missing_ok=True)
        for each in self._exchanges:
            each.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's makes noise in the log where `close` cancels it.
        task = asyncio.create_task(self._exchange(reader, writer))
        self._exchanges.add(task)
        task.add_done_callback(self._exchanges.discard)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(EXCHANGE_S):
                await self._serve(reader, writer)
        except (TimeoutError, OSError) as error:
            _log.debug("control_client_left", detail=str(error) or "too slow")
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _peer(writer.get_extra_info("socket"))
        try:
            if len(self._exchanges) > MOST_CONNECTIONS:
                raise NotDone(503, f"more than {MOST_CONNECTIONS} connections at once; try again")
            if peer.uid not in self._allowed:
                _log.warning("control_refused", uid=peer.uid, pid=peer.pid)
                raise NotDone(403, f"uid {peer.uid} may not change this gateway; become root or its own user")
            status, document = 200, await self._answer(*await _request(reader), peer)
        except NotDone as refusal:
            status, document = refusal.status, refusal.document
        writer.write(_written(status, document))
        await writer.drain()
        writer.write_eof()
        await reader.read(1)  # until the client has hung up: closing first could take the answer from it

    async def _answer(self, method: str, target: str, peer: Peer) -> Any:
        match [unquote(part) for part in target.partition("?")[0].split("/")]:
            case ["", "v1", "pools"]:
                _expect(method, "GET")
                return await self._commands.pools()
            case ["", "v1", "pools", pool, "endpoints", endpoint, ("drain" | "undrain") as verb]:
                _expect(method, "POST")
                return await self._commands.drain(pool, endpoint, draining=verb == "drain", uid=peer.uid)
            case ["", "v1", "upgrade"] if self._upgrades is not None:
                if method == "GET":
                    return msgspec.to_builtins(self._upgrades.status())
                _expect(method, "POST")
                _log.info("upgrade_asked_for", uid=peer.uid, pid=peer.pid)
                return msgspec.to_builtins(self._upgrades.begin())
        raise NotDone(404, "no such path", paths=_PATHS + _UPGRADE_PATHS * (self._upgrades is not None))


_PATHS = [
    "GET /v1/pools",
    "POST /v1/pools/{pool}/endpoints/{endpoint}/drain",
    "POST /v1/pools/{pool}/endpoints/{endpoint}/undrain",
]
_UPGRADE_PATHS = ["GET /v1/upgrade", "POST /v1/upgrade"]


def _expect(method: str, wanted: str) -> None:
    if method != wanted:
        raise NotDone(405, f"{wanted} is what this path takes")


def _peer(sock: Any) -> Peer:
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and target; a body is read and means nothing."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head[:-4].decode("ascii").split("\r\n")
        method, target, version = line.split(" ")
    except asyncio.LimitOverrunError:
        raise NotDone(431, f"the head is longer than {LONGEST_HEAD} bytes") from None
    except (ValueError, asyncio.IncompleteReadError):
        raise NotDone(400, "this is not an HTTP/1.1 request") from None
    if version not in ("HTTP/1.1", "HTTP/1.0") or not target.startswith("/"):
        raise NotDone(400, "this is not an HTTP/1.1 request")
    fields = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    length = fields.get("content-length", "0")
    if "transfer-encoding" in fields or not length.isdecimal() or len(length) > 9 or int(length) > LONGEST_BODY:
        raise NotDone(413, f"a body has a content-length, of {LONGEST_BODY} at most")
    await _skip(reader, int(length))
    return method, target


async def _skip(reader: asyncio.StreamReader, length: int) -> None:
    try:
        await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise NotDone(400, "the body is shorter than its content-length") from None


def _written(status: int, document: Mapping[str, Any]) -> bytes:
    body = msgspec.json.encode(document)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
