# SPDX-License-Identifier: Apache-2.0
"""Asks a server with the OpenAI-compatible API over HTTP/1.1 (`openai:`): vLLM, SGLang, llama.cpp.

Bodies pass as they are but for `priority`; token streams come piece by piece, each as soon as it is there.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from backends.messages import Api, Pieces, Reply, Request
from backends.remote.connection import Answer
from backends.remote.http_server import HttpServer, accepted, begins_as_json, head, well
from backends.remote.origin import parse_origin
from backends.remote.priority import openai_json
from backends.remote.sse import EventStream, said_done
from backends.settings import PriorityField, SecretSettings
from inferlane.errors import Reason, Refused
from qos.traffic_class import StreamPromise

__all__ = ["OpenAiBackend"]

_COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
"""Their streams are whole only with `data: [DONE]`."""
_PATHS = (*_COMPLETIONS, "/v1/embeddings")
_PLAIN = b"\r\naccept-encoding: identity"
"""A compressed stream could neither be kept alive by comments nor be known to be whole."""
_NOT_PASSED = (b"accept-encoding", b"content-encoding")  # the latter is none, or not true: the body was read as JSON
_models = msgspec.json.Decoder(dict[str, Any])


class OpenAiBackend:
    """One server.

    url: http:// or https://, host, port and the path above its /v1; slots: idle connections kept;
    ca: the certificates that an https server is checked against, None for the system's; key: where the secret is that
    goes with each request; priority: whose `priority` member is set from the class; address: where to connect
    instead of looking the host up.
    """

    api = Api.OPENAI
    ready = True  # without an active probe; what fails is told by each request

    def __init__(
        self,
        url: str,
        *,
        slots: int,
        ca: Path | None = None,
        key: SecretSettings | None = None,
        priority: PriorityField | None = None,
        address: str | None = None,
    ) -> None:
        self._url = url
        self.server = HttpServer(parse_origin(url, address), slots=slots, ca=ca, key=key)
        self._priority: PriorityField | None = priority
        self._prefix = lru_cache(maxsize=256)(self._render_prefix)

    def __repr__(self) -> str:
        return f"<OpenAiBackend {self._url} {self.server!r}>"

    async def start(self) -> None:
        """Read certificates and key. Nothing is connected before the first request."""
        await self.server.start()

    async def close(self) -> None:
        """Close its connections; what is in flight fails."""
        await self.server.close()

    async def infer(self, request: Request) -> Reply:
        """Send the request and bring the reply; of a token stream, once its first piece is here."""
        if request.deadline <= monotonic():
            raise Refused(Reason.DEADLINE, "the request's time was up before it was sent to the backend")
        path = request.path.partition("?")[0]
        if path not in _PATHS:
            raise Refused(Reason.NOT_FOUND, f"{path or 'this request'} is none of {', '.join(_PATHS)}")
        traffic_class = request.traffic_class
        payload = openai_json(await request.body.read_all(), self._priority, traffic_class.rank)
        prefix = self._prefix(path, traffic_class.name)

        def render() -> bytes:
            return head(prefix, request, length=len(payload), json_length=None, dropped=_NOT_PASSED) + payload

        answer = await self.server.post(traffic_class, render, deadline=request.deadline, events=True)
        request.timeline.first_byte = answer.first_byte
        try:
            return _reply(answer, traffic_class.stream, says_done=path in _COMPLETIONS)
        except Refused:
            answer.discard()
            raise

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """Refused: this API has no tensors to describe."""
        raise Refused(Reason.NOT_FOUND, f"model {model!r} answers at {', '.join(_PATHS)}, and has no metadata of /v2")

    async def models(self, *, deadline: float) -> list[dict[str, Any]]:
        """The models that the server lists, as it tells them. Raises Refused."""
        answer = await self.server.get("/v1/models", deadline=deadline)
        well(answer)
        assert isinstance(answer.body, bytes)  # `get` brings it whole
        try:
            listed = _models.decode(answer.body).get("data")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(Reason.BACKEND_FAILED, f"the backend's list of models is not JSON: {error}") from None
        if not isinstance(listed, list):
            raise Refused(Reason.BACKEND_FAILED, "the backend's list of models has no data")
        return [each for each in listed if isinstance(each, dict) and isinstance(each.get("id"), str)]

    async def probe(self, *, deadline: float) -> None:
        """Ask /health and, where there is none, for the models. Raises Refused where the answer is not 2xx by then."""
        answer = await self.server.get("/health", deadline=deadline)
        if answer.status == 404:
            answer = await self.server.get("/v1/models", deadline=deadline)
        well(answer)

    def _render_prefix(self, path: str, class_name: str) -> bytes:
        return self.server.prefix(f"{self.server.origin.base}{path}", class_name, _PLAIN)


def _reply(answer: Answer, promise: StreamPromise, *, says_done: bool) -> Reply:
    accepted(answer)
    body: bytes | Pieces = answer.body
    good = 200 <= answer.status < 300
    if good and answer.said.encoded:
        raise Refused(Reason.BACKEND_FAILED, "the backend compressed its reply, which nobody asked for")
    if not answer.said.event_stream:
        begins_as_json(answer)
    elif not isinstance(answer.body, bytes):
        body = EventStream(answer.body, promise, says_done=says_done and good)
    elif says_done and good and not said_done(answer.body):
        raise Refused(Reason.BACKEND_FAILED, "the backend ended its stream without data: [DONE]")
    return Reply(
        status=answer.status,
        body=body,
        fields=answer.said.to_client,
        compute_s=answer.said.compute_s,
        backend_queue_s=answer.said.queue_s,
        streaming=isinstance(body, EventStream),
    )
