# SPDX-License-Identifier: Apache-2.0
"""One server behind HTTP/1.1 as its backend asks it: connections, TLS and key, and the head that all requests share.

What the paths are and what a reply must look like is the backend's: `oip.py`, `openai.py`.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from time import monotonic

from backends.errors import BackendError
from backends.messages import Request
from backends.remote import fields
from backends.remote.connection import Answer, Stale, Upload
from backends.remote.keepalive import Connections
from backends.remote.origin import Origin
from backends.settings import SecretSettings
from inferlane.errors import Reason, Refused
from qos.marking import UNMARKED, Mark, mark_of
from qos.traffic_class import TrafficClass

__all__ = ["ONE_WRITE", "HttpServer", "accepted", "begins_as_json", "head", "read_key", "well"]

ONE_WRITE = 256 * 1024
"""A body that is there and not longer goes out with its head in one write, and can be sent a second time."""
FRESH_S = 2.0
"""A body that cannot be sent twice goes only on a connection used so recently, or on a new one: no common server
closes an idle one before 5 s (uvicorn, Node), so this one is not being closed while we write."""
MOST_TOLD = 4 * 1024 * 1024
"""Bytes of an answer to a question of our own."""

_BLANK = 256
"""Bytes in which a JSON object has to begin; no server that we know writes any space before it."""

_KEY = re.compile(r"[!-~]{1,8192}").fullmatch  # what a Bearer field can carry; RFC 6750 allows fewer characters


class HttpServer:
    """Asks, and keeps the connections.

    slots: idle connections kept; ca: the certificates that an https server is checked against, None for the system's;
    key: where the secret is that goes with each request.
    """

    def __init__(self, origin: Origin, *, slots: int, ca: Path | None, key: SecretSettings | None) -> None:
        self.origin = origin
        self._ca = ca
        self._key = key
        self._connections = Connections(origin, max_idle=slots)
        self._authorization = b""

    def __repr__(self) -> str:
        return repr(self._connections)

    async def start(self) -> None:
        """Read certificates and key. Nothing is connected before the first request. Raises BackendError."""
        if self.origin.tls:
            self._connections.tls = _client_context(self._ca)
        elif self._ca is not None:
            where = f"{self.origin.authority.decode()}{self.origin.base}"
            raise BackendError(f"{where}: tls.ca has nothing to check there; write https://, or leave tls out")
        if self._key is not None:
            self._authorization = b"\r\nauthorization: Bearer " + read_key(self._key).encode()

    async def close(self) -> None:
        """Close its connections; what is in flight fails."""
        await self._connections.close()

    def post(
        self, traffic_class: TrafficClass, render: Callable[[], bytes], *, deadline: float, events: bool = False
    ) -> Coroutine[None, None, Answer]:
        """A request that is there as a whole, rendered anew for each connection that is tried.

        events: the deadline of a reply that is an event stream is until its first byte.
        """
        return self._ask(traffic_class.name, mark_of(traffic_class), render, deadline, events=events)

    async def post_as_it_arrives(
        self, request: Request, render: Callable[[], bytes], upload: Upload, length: int | None
    ) -> Answer:
        """A request whose body follows its head while it comes in; length: its bytes, None for chunks."""
        class_name, mark = request.traffic_class.name, mark_of(request.traffic_class)
        connection = self._connections.take(class_name, mark, used_since=monotonic() - FRESH_S)
        if connection is None:
            connection = await self._connections.open(class_name, mark, deadline=request.deadline)
        return await connection.ask(render(), deadline=request.deadline, body=upload, length=length)

    async def get(self, path: str, *, deadline: float) -> Answer:
        """A question of our own: its answer comes whole. Raises Refused."""
        head = b"GET %b HTTP/1.1\r\nhost: %b\r\naccept: application/json%b\r\n\r\n" % (
            f"{self.origin.base}{path}".encode(),
            self.origin.authority,
            self._authorization,
        )
        answer = await self._ask("", UNMARKED, lambda: head, deadline)
        if not isinstance(answer.body, bytes):
            answer.body = await answer.body.read_all(MOST_TOLD)
        return answer

    def prefix(self, path: str, class_name: str, more: bytes = b"") -> bytes:
        """The part of a head that all requests of a class for a path share; `head` completes it.

        more: fields of the backend's own, each behind a line end.
        """
        return b"POST %b HTTP/1.1\r\nhost: %b%b%b\r\ninferlane-class: %b\r\ninferlane-timeout: " % (
            path.encode(),
            self.origin.authority,
            self._authorization,
            more,
            class_name.encode(),
        )

    async def _ask(
        self, class_name: str, mark: Mark, render: Callable[[], bytes], deadline: float, *, events: bool = False
    ) -> Answer:
        connection = self._connections.take(class_name, mark)
        if connection is not None:
            try:
                return await connection.ask(render(), deadline=deadline, events=events)
            except Stale:
                # Closed in the moment we wrote. Once more on a new connection: inference has no side effects, and
                # RFC 9110 section 9.2.2 lets a client repeat what it knows to be idempotent.
                pass
        connection = await self._connections.open(class_name, mark, deadline=deadline)
        return await connection.ask(render(), deadline=deadline, events=events)


def head(
    prefix: bytes, request: Request, *, length: int | None, json_length: int | None, dropped: tuple[bytes, ...] = ()
) -> bytes:
    """A request's head, from `HttpServer.prefix` to the empty line. length: of the body, None for chunks.

    dropped: lower-case names of the client's fields that do not pass, besides those that never do.
    """
    parts = [
        prefix,
        fields.duration_text(request.deadline - monotonic()),
        b"\r\nx-request-id: ",
        request.request_id.encode(),
    ]
    if request.traceparent is not None:
        parts += (b"\r\ntraceparent: ", request.traceparent.encode())
    if json_length is not None:
        parts.append(b"\r\ninference-header-content-length: %d" % json_length)
    parts.append(b"\r\ncontent-length: %d" % length if length is not None else b"\r\ntransfer-encoding: chunked")
    has_type = False
    for name, value in fields.to_backend(request.fields):
        if name in dropped:
            continue
        if name == b"content-type":
            has_type = True
        parts += (b"\r\n", name, b": ", value)
    if not has_type:  # it came by datagram or stream, which have no fields
        parts.append(_JSON if json_length is None else _TENSORS)
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


_JSON = b"\r\ncontent-type: application/json"
_TENSORS = b"\r\ncontent-type: application/octet-stream"


def read_key(settings: SecretSettings) -> str:
    """The secret from its environment variable or file. Raises BackendError that says which and why."""
    if settings.env is not None:
        where, text = f"key.env: {settings.env}", os.environ.get(settings.env)
        if text is None:
            raise BackendError(f"{where} is not set in the environment; set it, or name a key.file")
    else:
        assert settings.file is not None  # the settings have one of both
        where = f"key.file: {settings.file}"
        try:
            text = settings.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise BackendError(f"{where}: {reason}; its first line is the key") from error
    key = text.partition("\n")[0].strip()
    if not _KEY(key):
        raise BackendError(f"{where}: a key is one line of 1 to 8192 visible ASCII characters")
    return key


def accepted(answer: Answer) -> None:
    """Raise Refused where the server wants other credentials: the client's do not reach it, so it is not the client
    who can mend that, and its own key must not look wrong."""
    if answer.status == 401:
        detail = "the backend does not accept the gateway's key; the endpoint's `key` says where that is"
        raise Refused(Reason.BACKEND_FAILED, detail)


def begins_as_json(answer: Answer) -> None:
    """Raise Refused where a good answer is not a JSON object, with binary tensors behind it or without.

    A server that says 200 to everything at once would otherwise look like the fastest of its pool.
    """
    if not 200 <= answer.status < 300 or answer.said.encoded:
        return
    first = answer.body if isinstance(answer.body, bytes) else answer.body.first
    if not first.startswith(b"{") and not first[:_BLANK].lstrip(b" \t\r\n").startswith(b"{"):
        raise Refused(Reason.BACKEND_FAILED, f"the backend answered {answer.status} with something that is not JSON")


def well(answer: Answer) -> None:
    """Raise Refused where a server's answer does not say that it is ready."""
    accepted(answer)
    if not 200 <= answer.status < 300:
        raise Refused(Reason.BACKEND_FAILED, f"the backend answers {answer.status} when asked whether it is ready")


def _client_context(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError among them: a file without a certificate
        detail = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "no certificate in PEM form"
        raise BackendError(
            f"{ca}: {detail}; tls.ca names the PEM file that the endpoint's certificate is checked by"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context
