# SPDX-License-Identifier: Apache-2.0
"""Which operation an HTTP path names, of the Open Inference Protocol or OpenAI's, and the fields that steer a request.

Paths: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md;
Inference-Header-Content-Length: Triton's binary tensor extension.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from backends.messages import Fields
from inferlane.errors import Reason, Refused
from proxy.arrival import Operation
from proxy.protocols.hints import parse_priority, parse_timeout

__all__ = ["Head", "Target", "head", "target"]

_MODEL = re.compile(r"/v2/models/([^/?]{1,600})(?:/versions/([^/?]{1,100}))?(?:/(infer|ready))?/?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}").fullmatch
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch  # W3C Trace Context, 3.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f]").search
_MAX_MODEL = 255  # a datagram carries the name behind one length byte (docs/wire.md)

_SERVER = {
    "/v2": Operation.SERVER_METADATA,
    "/v2/health/live": Operation.LIVE,
    "/v2/health/ready": Operation.READY,
    "/v1/models": Operation.OPENAI_MODELS,
}
_OPENAI = {f"/v1/{each}": Operation.OPENAI for each in ("chat/completions", "completions", "embeddings")}
_OPENAI_MODEL = "/v1/models/"
_OF_MODEL = {None: Operation.METADATA, "ready": Operation.MODEL_READY, "infer": Operation.INFER}


@dataclass(frozen=True, slots=True)
class Target:
    """What a request line asks for."""

    operation: Operation
    model: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The fields of a request that steer its walk."""

    asked_class: str | None = None
    urgency: int | None = None
    timeout_s: float | None = None
    request_id: str | None = None
    traceparent: str | None = None
    json_length: int | None = None


_UNSTEERED = Head()


@lru_cache(maxsize=1024)  # clients ask for few paths, many times; refusals are not kept
def target(method: bytes, path: bytes) -> Target:
    """A clean method and path -> the operation. Raises Refused NOT_FOUND or METHOD_NOT_ALLOWED."""
    text = path.decode("ascii").split("?", 1)[0]
    operation = _SERVER.get(text.rstrip("/")) or _OPENAI.get(text)
    if operation is not None:
        found = Target(operation)
    elif text.startswith("/v1/"):
        found = _openai(text)
    else:
        match = _MODEL.fullmatch(text)
        if match is None:
            raise Refused(
                Reason.NOT_FOUND,
                "no such path; models answer at /v2/models/NAME[/versions/VERSION][/infer|/ready], the server at /v2",
            )
        name, version, verb = match.groups()
        found = Target(_OF_MODEL[verb], _name(name), _name(version or ""))
    allowed = b"POST" if found.operation in (Operation.INFER, Operation.OPENAI) else b"GET"
    if method not in (allowed, b"HEAD" if allowed == b"GET" else allowed):
        raise Refused(Reason.METHOD_NOT_ALLOWED, f"{text} takes {allowed.decode()}")
    return found


def _openai(text: str) -> Target:
    name = text.removeprefix(_OPENAI_MODEL)
    if name in (text, ""):
        raise Refused(Reason.NOT_FOUND, f"no such path; of OpenAI's there are {', '.join(_OPENAI)} and /v1/models")
    return Target(Operation.OPENAI_MODELS, _name(name))  # the name may have slashes, as those of model hubs do


def _name(text: str) -> str:
    name = unquote(text, errors="replace")
    if len(name.encode()) > _MAX_MODEL or _CONTROL(name):
        raise Refused(Reason.NOT_FOUND, f"a model or version name has at most {_MAX_MODEL} bytes and no controls")
    return name


def head(fields: Fields) -> Head:
    """The steering fields. Raises Refused BAD_REQUEST where one that must be exact is not.

    A bad Priority, request id or traceparent is a hint lost, not a request refused (RFC 9218 section 4).
    """
    found: dict[str, str | int | float | None] = {}
    for name, value in fields:
        read = _READERS.get(name)
        if read is None:
            continue
        key, parse = read
        try:
            found[key] = parse(value)
        except ValueError as error:
            raise Refused(Reason.BAD_REQUEST, f"{name.decode()}: {error}") from None
    return Head(**found) if found else _UNSTEERED  # type: ignore[arg-type]  # keys and parsers are paired in _READERS


def _class(value: bytes) -> str:
    return value.decode("ascii", "replace")


def _request_id(value: bytes) -> str | None:
    text = value.decode("ascii", "replace")
    return text if _REQUEST_ID(text) else None


def _traceparent(value: bytes) -> str | None:
    text = value.decode("ascii", "replace")
    return text if _TRACEPARENT(text) else None


def _json_length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 12:
        raise ValueError(f"must be the number of JSON bytes before the tensors, not {value[:40]!r}")
    return int(value)


_READERS: dict[bytes, tuple[str, Callable[[bytes], str | int | float | None]]] = {
    b"inferlane-class": ("asked_class", _class),
    b"priority": ("urgency", parse_priority),
    b"inferlane-timeout": ("timeout_s", parse_timeout),
    b"x-request-id": ("request_id", _request_id),
    b"traceparent": ("traceparent", _traceparent),
    b"inference-header-content-length": ("json_length", _json_length),
}
