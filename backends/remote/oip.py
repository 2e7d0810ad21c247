# SPDX-License-Identifier: Apache-2.0
"""Asks another Open Inference Protocol server over HTTP/1.1 (`oip:`): Triton, KServe, `inferlane serve`, a gateway.

Tensors pass unread; decided here are the head, the scheduling parameters, and what a failure means to the client.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from time import monotonic

from backends.body import Body
from backends.messages import Api, Reply, Request
from backends.remote import fields
from backends.remote.connection import Answer
from backends.remote.http_server import ONE_WRITE, HttpServer, accepted, begins_as_json, head, well
from backends.remote.origin import model_path, parse_origin
from backends.remote.priority import oip_json
from backends.settings import PriorityField, SecretSettings
from inferlane.errors import Reason, Refused

__all__ = ["OipBackend"]

MOST_JSON = 4 * 1024 * 1024
"""JSON that is gathered to be read. Without `priority` at the endpoint, longer passes as it is."""
PREFIXES = 1024
"""Heads kept ready. Model names may come from clients (`model: "*"`), so their number needs a bound."""


class OipBackend:
    """One server.

    url: http:// or https://, host, port and the path above its /v2; slots: idle connections kept;
    ca: the certificates that an https server is checked against, None for the system's; key: where the secret is that
    goes with each request; priority: whose scheduling parameters are set from the class; address: where to connect
    instead of looking the host up; unix: a Unix socket to connect to instead; model: what is asked for, whatever
    the client calls it.
    """

    api = Api.OIP
    ready = True  # without an active probe; what fails is told by each request

    def __init__(  # noqa: PLR0913  what the config may say of one server
        self,
        url: str,
        *,
        slots: int,
        ca: Path | None = None,
        key: SecretSettings | None = None,
        priority: PriorityField | None = None,
        address: str | None = None,
        unix: Path | None = None,
        model: str | None = None,
    ) -> None:
        self._url = url
        self._model = model
        self.server = HttpServer(parse_origin(url, address, unix), slots=slots, ca=ca, key=key)
        self._priority: PriorityField | None = priority
        self._prefix = lru_cache(maxsize=PREFIXES)(self._render_prefix)

    def __repr__(self) -> str:
        return f"<OipBackend {self._url} {self.server!r}>"

    async def start(self) -> None:
        """Read certificates and key. Nothing is connected before the first request."""
        await self.server.start()

    async def close(self) -> None:
        """Close its connections; what is in flight fails."""
        await self.server.close()

    async def infer(self, request: Request) -> Reply:
        """Send the request and bring the reply: small ones whole, others as they come."""
        if request.deadline <= monotonic():
            raise Refused(Reason.DEADLINE, "the request's time was up before it was sent to the backend")
        if self._priority is not None and fields.is_encoded(request.fields):
            detail = "send the body without content-encoding: its scheduling parameters are set here"
            raise Refused(Reason.BAD_REQUEST, detail, status=415)
        self._prefix(*self._asked(request), request.traffic_class.name)  # refuses a name before connecting
        body = request.body
        if body.complete and body.received <= ONE_WRITE:
            answer = await self._ask_whole(request)
        else:
            answer = await self._ask_as_it_arrives(request)
        request.timeline.first_byte = answer.first_byte
        return _checked(answer)

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """The model's metadata, as the server tells it."""
        if self._model is not None:
            model = self._model
        return _checked(await self.server.get(model_path("", model, version), deadline=deadline))

    async def probe(self, *, deadline: float) -> None:
        """Ask /v2/health/ready. Raises Refused where the answer is not 2xx by then."""
        well(await self.server.get("/v2/health/ready", deadline=deadline))

    async def _ask_whole(self, request: Request) -> Answer:
        payload, json_length = await request.body.read_all(), request.json_length
        edited = self._edited(request, payload, len(payload) if json_length is None else json_length)
        if edited is not None:
            tensors = b"" if json_length is None else payload[json_length:]
            payload, json_length = edited + tensors, None if json_length is None else len(edited)

        def render() -> bytes:
            return self._head(request, len(payload), json_length) + payload

        return await self.server.post(request.traffic_class, render, deadline=request.deadline)

    async def _ask_as_it_arrives(self, request: Request) -> Answer:
        body, json_length = request.body, request.json_length
        length = body.received if body.complete else body.declared
        begin = b""
        if self._reads(request):
            # Without a length of its own the JSON is all of it.
            begin = await _gathered(body, MOST_JSON + 1 if json_length is None else json_length, request.deadline)
            end = len(begin) if json_length is None else json_length
            if end > MOST_JSON:
                raise Refused(Reason.TOO_LARGE, f"more than {MOST_JSON} bytes of JSON; send tensors as binary data")
            edited = self._edited(request, begin, end)
            if edited is not None:
                begin = edited + begin[end:]
                length = None if length is None else length + len(edited) - end
                json_length = None if json_length is None else len(edited)
        upload = _Upload(begin, body)
        return await self.server.post_as_it_arrives(
            request, lambda: self._head(request, length, json_length), upload, length
        )

    def _reads(self, request: Request) -> bool:
        """Whether a body that arrives piece by piece is looked into: where something has to be set, and where its
        JSON has an end of its own. The longer ones in plain JSON are not worth gathering for what nobody asked for."""
        if self._priority is not None:
            return True
        return request.json_length is not None and request.json_length <= MOST_JSON

    def _edited(self, request: Request, body: bytes, length: int) -> bytes | None:
        if length > len(body):
            detail = f"{length} bytes of JSON are announced in a body of {len(body)} bytes"
            raise Refused(Reason.BAD_REQUEST, detail)
        left_s = request.deadline - monotonic()
        return oip_json(body, length, self._priority, request.traffic_class.rank, left_s=left_s)

    def _render_prefix(self, model: str, version: str, class_name: str) -> bytes:
        path = model_path(self.server.origin.base, model, version)
        return self.server.prefix(f"{path}/infer", class_name)

    def _asked(self, request: Request) -> tuple[str, str]:
        """Model and version by their names at the server."""
        return self._model or request.model, request.version

    def _head(self, request: Request, length: int | None, json_length: int | None) -> bytes:
        prefix = self._prefix(*self._asked(request), request.traffic_class.name)
        return head(prefix, request, length=length, json_length=json_length)


class _Upload:
    """What was gathered of a body, and then what still comes."""

    __slots__ = ("_begin", "_body")

    def __init__(self, begin: bytes, body: Body) -> None:
        self._begin = begin
        self._body = body

    async def read(self) -> bytes:
        begin, self._begin = self._begin, b""
        return begin or await self._body.read()


async def _gathered(body: Body, count: int, deadline: float) -> bytes:
    """The first `count` bytes of a body, or more, or all that it has."""
    gathered = bytearray()
    try:
        async with asyncio.timeout(deadline - monotonic()):
            while len(gathered) < count and (piece := await body.read()):
                gathered += piece
    except TimeoutError:
        raise Refused(Reason.DEADLINE, "the request's time was up before its JSON was here") from None
    return bytes(gathered)


def _checked(answer: Answer) -> Reply:
    try:
        return _reply(answer)
    except Refused:
        answer.discard()
        raise


def _reply(answer: Answer) -> Reply:
    accepted(answer)
    said, json_length = answer.said, answer.said.json_length
    if said.no_number:
        detail = "the backend's reply makes no sense: its inference-header-content-length is not a number"
        raise Refused(Reason.BACKEND_FAILED, detail)
    if json_length is not None and isinstance(answer.body, bytes) and json_length > len(answer.body):
        detail = f"the backend announced {json_length} bytes of JSON in a reply of {len(answer.body)} bytes"
        raise Refused(Reason.BACKEND_FAILED, detail)
    begins_as_json(answer)
    return Reply(
        status=answer.status,
        body=answer.body,
        json_length=json_length,
        fields=said.to_client,
        compute_s=said.compute_s,
        backend_queue_s=said.queue_s,
    )
