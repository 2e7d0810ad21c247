# SPDX-License-Identifier: Apache-2.0
"""Asks another Open Inference Protocol server over HTTP/1.1 (`oip:`): Triton, KServe, `inferlane serve`, a gateway.

Bodies pass unread; what is decided here is the head, and what a failure means to the client.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from time import monotonic

from backends.errors import BackendError
from backends.messages import Reply, Request
from backends.remote import fields
from backends.remote.connection import Answer, Stale
from backends.remote.keepalive import Connections
from backends.remote.origin import model_path, parse_origin
from inferlane.errors import Reason, Refused
from qos.marking import UNMARKED, Mark, mark_of

__all__ = ["OipBackend"]

ONE_WRITE = 256 * 1024
"""A body that is there and not longer goes out with its head in one write, and can be sent a second time."""
FRESH_S = 2.0
"""A body that cannot be sent twice goes only on a connection used so recently, or on a new one: no common server
closes an idle one before 5 s (uvicorn, Node), so this one is not being closed while we write."""
PREFIXES = 1024
"""Heads kept ready. Model names may come from clients (`model: "*"`), so their number needs a bound."""


class OipBackend:
    """One server.

    url: http:// or https://, host, port and the path above its /v2; slots: idle connections kept;
    ca: the certificates that an https server is checked against, None for the system's.
    """

    ready = True  # without an active probe; what fails is told by each request

    def __init__(self, url: str, *, slots: int, ca: Path | None = None) -> None:
        self._url = url
        self._origin = parse_origin(url)
        self._ca = ca
        self._connections = Connections(self._origin, max_idle=slots)
        self._prefix = lru_cache(maxsize=PREFIXES)(self._render_prefix)

    def __repr__(self) -> str:
        return f"<OipBackend {self._url} {self._connections!r}>"

    async def start(self) -> None:
        """Read the certificates. Nothing is connected before the first request."""
        if self._origin.tls:
            self._connections.tls = _client_context(self._ca)
        elif self._ca is not None:
            raise BackendError(f"{self._url}: tls.ca has nothing to check there; write https://, or leave tls out")

    async def close(self) -> None:
        """Close its connections; what is in flight fails."""
        await self._connections.close()

    async def infer(self, request: Request) -> Reply:
        """Send the request and bring the reply: small ones whole, others as they come."""
        if request.deadline <= monotonic():
            raise Refused(Reason.DEADLINE, "the request's time was up before it was sent to the backend")
        body = request.body
        self._prefix(request.model, request.version, request.traffic_class.name)  # refuses a name before connecting
        if body.complete and body.received <= ONE_WRITE:
            payload = await body.read_all()
            answer = await self._ask(
                request.traffic_class.name,
                mark_of(request.traffic_class),
                lambda: self._head(request, len(payload)) + payload,
                request.deadline,
            )
        else:
            answer = await self._ask_while_it_arrives(request)
        request.timeline.first_byte = answer.first_byte
        return _reply(answer)

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """The model's metadata, as the server tells it."""
        path = model_path(self._origin.base, model, version)
        head = b"GET %b HTTP/1.1\r\nhost: %b\r\naccept: application/json\r\n\r\n" % (
            path.encode(),
            self._origin.authority,
        )
        return _reply(await self._ask("", UNMARKED, lambda: head, deadline))

    async def _ask(self, class_name: str, mark: Mark, render: Callable[[], bytes], deadline: float) -> Answer:
        connection = self._connections.take(class_name, mark)
        if connection is not None:
            try:
                return await connection.ask(render(), deadline=deadline)
            except Stale:
                # Closed in the moment we wrote. Once more on a new connection: inference has no side effects, and
                # RFC 9110 section 9.2.2 lets a client repeat what it knows to be idempotent.
                pass
        connection = await self._connections.open(class_name, mark, deadline=deadline)
        return await connection.ask(render(), deadline=deadline)

    async def _ask_while_it_arrives(self, request: Request) -> Answer:
        body, class_name, mark = request.body, request.traffic_class.name, mark_of(request.traffic_class)
        length = body.received if body.complete else body.declared
        connection = self._connections.take(class_name, mark, used_since=monotonic() - FRESH_S)
        if connection is None:
            connection = await self._connections.open(class_name, mark, deadline=request.deadline)
        head = self._head(request, length)
        return await connection.ask(head, deadline=request.deadline, body=body, length=length)

    def _render_prefix(self, model: str, version: str, class_name: str) -> bytes:
        """The part of a head that all requests of a class for a model share."""
        path = model_path(self._origin.base, model, version)
        return b"POST %b/infer HTTP/1.1\r\nhost: %b\r\ninferlane-class: %b\r\ninferlane-timeout: " % (
            path.encode(),
            self._origin.authority,
            class_name.encode(),
        )

    def _head(self, request: Request, length: int | None) -> bytes:
        parts = [
            self._prefix(request.model, request.version, request.traffic_class.name),
            fields.duration_text(request.deadline - monotonic()).encode(),
            b"\r\nx-request-id: ",
            request.request_id.encode(),
        ]
        if request.traceparent is not None:
            parts += (b"\r\ntraceparent: ", request.traceparent.encode())
        if request.json_length is not None:
            parts.append(b"\r\ninference-header-content-length: %d" % request.json_length)
        parts.append(b"\r\ncontent-length: %d" % length if length is not None else b"\r\ntransfer-encoding: chunked")
        has_type = False
        for name, value in fields.to_backend(request.fields):
            has_type = has_type or name == b"content-type"
            parts += (b"\r\n", name, b": ", value)
        if not has_type:  # it came by datagram or stream, which have no fields
            kind = b"json" if request.json_length is None else b"octet-stream"
            parts += (b"\r\ncontent-type: application/", kind)
        parts.append(b"\r\n\r\n")
        return b"".join(parts)


def _reply(answer: Answer) -> Reply:
    try:
        json_length = fields.json_length(answer.fields)
    except ValueError as error:
        raise Refused(Reason.BACKEND_FAILED, f"the backend's reply makes no sense: {error}") from None
    if json_length is not None and isinstance(answer.body, bytes) and json_length > len(answer.body):
        detail = f"the backend announced {json_length} bytes of JSON in a reply of {len(answer.body)} bytes"
        raise Refused(Reason.BACKEND_FAILED, detail)
    return Reply(
        status=answer.status,
        body=answer.body,
        json_length=json_length,
        fields=fields.to_client(answer.fields),
        compute_s=fields.compute_seconds(answer.fields),
    )


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
