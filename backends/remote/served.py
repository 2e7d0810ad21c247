# SPDX-License-Identifier: Apache-2.0
"""An `onnx:` endpoint whose model a process of this gateway runs, for several workers at once. Both ends of it.

It is asked like any other server, but what it says is what the model here would have said, to the bit, refusals and
their reasons as well. So what clients may call a model and cannot stand in a path goes in a field beside it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from backends.backend import Backend
from backends.messages import Reply, Request
from backends.remote.oip import OipBackend
from inferlane.errors import Reason, Refused

__all__ = ["Naming", "ServedModel"]

_ORIGIN = "http://models"
"""Nobody looks it up: there is the socket."""
_ANY = "model"
"""Each socket has one model, under whatever name."""
_ASKED = b"x-asked"
"""The model's name and version as the client has them."""


class _Problem(msgspec.Struct):
    """What is read of a refusal."""

    reason: str
    detail: str = ""
    status: int | None = None
    retry_after_ms: float | None = None


_PROBLEM = msgspec.json.Decoder(_Problem)


class ServedModel(OipBackend):
    """A worker's end. path: the Unix socket that is the model's own."""

    def __init__(self, path: Path, *, slots: int) -> None:
        super().__init__(_ORIGIN, slots=slots, unix=path, model=_ANY)

    async def infer(self, request: Request) -> Reply:
        """Answer one request, alone or in a batch with others."""
        asked = f"{quote(request.model, safe='')}/{quote(request.version, safe='')}".encode()
        # A model reads none of the client's fields.
        return await _own(await super().infer(replace(request, version="", fields=((_ASKED, asked),))))

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """The model's inputs and outputs."""
        if version not in ("", "1"):
            raise Refused(Reason.UNKNOWN_MODEL, f"model {model!r} has no version {version[:40]!r}; it has version 1")
        reply = await _own(await super().metadata(model, "", deadline=deadline))
        document = msgspec.json.decode(await _whole(reply))
        return replace(reply, body=msgspec.json.encode(document | {"name": model}))


class Naming:
    """The other end: a model under the name that each request's client has for it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.api = backend.api
        self.start, self.close = backend.start, backend.close
        self.metadata, self.probe = backend.metadata, backend.probe

    def __repr__(self) -> str:
        return f"<Naming {self._backend!r}>"

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._backend.ready

    async def infer(self, request: Request) -> Reply:
        """Answer one request."""
        asked = next((value.decode("ascii") for name, value in request.fields if name == _ASKED), None)
        if asked is not None:
            model, _, version = asked.partition("/")
            request = replace(request, model=unquote(model), version=unquote(version))
        return await self._backend.infer(request)


async def _own(reply: Reply) -> Reply:
    """As if the model ran here. Raises Refused where it refused."""
    if reply.status < 400:
        fields = tuple(each for each in reply.fields if each[0] == b"content-type")
        # Whoever asks it has a place, so it waits for nobody there.
        return replace(reply, fields=fields, backend_queue_s=None)
    try:
        problem = _PROBLEM.decode(await _whole(reply))
    except msgspec.MsgspecError:
        raise Refused(Reason.BACKEND_FAILED, f"the models' process answered {reply.status} without a reason") from None
    after_s = None if problem.retry_after_ms is None else problem.retry_after_ms / 1e3
    raise Refused(Reason.from_label(problem.reason), problem.detail, retry_after_s=after_s, status=problem.status)


async def _whole(reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    pieces = [piece async for piece in reply.body]
    return b"".join(pieces)
