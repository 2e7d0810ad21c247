# SPDX-License-Identifier: Apache-2.0
"""The backend's own `priority` in JSON bodies: set from the class, or taken out, and never the client's. No I/O.

Every other member keeps its bytes. vLLM serves lower numbers first and has 0 as its default
(https://docs.vllm.ai, `--scheduling-policy priority`); Triton's levels begin with 1, the highest, and its `timeout` is
in microseconds (https://github.com/triton-inference-server/server, docs/protocol/extension_schedule_policy.md).
"""

from __future__ import annotations

import msgspec

from backends.settings import PriorityField
from inferlane.errors import Reason, Refused

__all__ = ["oip_json", "openai_json"]

_Members = dict[str, msgspec.Raw]
_members = msgspec.json.Decoder(_Members)
_members_or_null = msgspec.json.Decoder(_Members | None)
_FIRST_LEVEL = {"vllm": 0, "triton": 1}


def openai_json(body: bytes, dialect: PriorityField | None, rank: int) -> bytes:
    """A body of OpenAI's API with the class's `priority`; without a dialect, with none. Raises Refused BAD_REQUEST."""
    if dialect is None and not _may_have(body, len(body), b'"priority"'):
        return body
    members = _read(_members, body)
    if dialect is not None:
        members["priority"] = _number(_FIRST_LEVEL[dialect] + rank)
    elif members.pop("priority", None) is None:
        return body
    return msgspec.json.encode(members)


def oip_json(body: bytes, length: int, dialect: PriorityField | None, rank: int, *, left_s: float) -> bytes | None:
    """The first `length` bytes of an Open Inference Protocol request anew, with the class's `priority` among its
    parameters and, for Triton, what is left of the time as `timeout`; None: they can stay. Raises Refused BAD_REQUEST.
    """
    if dialect is None and not _may_have(body, length, b'"priority"', b'"timeout"'):
        return None
    members = _read(_members, body[:length])
    parameters = _read(_members_or_null, members.get("parameters", msgspec.Raw(b"null"))) or {}
    stripped = [parameters.pop(name) for name in ("priority", "timeout") if name in parameters]
    if dialect is not None:
        parameters["priority"] = _number(_FIRST_LEVEL[dialect] + rank)
        if dialect == "triton":
            parameters["timeout"] = _number(max(1, int(left_s * 1e6)))
    elif not stripped:
        # Of members with one name the last is read here and the first by others, RapidJSON in Triton among them.
        once = msgspec.json.encode(members)
        return None if _hints(once, len(once)) == _hints(body, length) else once
    members["parameters"] = msgspec.Raw(msgspec.json.encode(parameters))
    return msgspec.json.encode(members)


def _may_have(body: bytes, length: int, *names: bytes) -> bool:
    """A look that costs next to nothing: whether a member may have such a name, as it is or spelled in escapes."""
    for name in names:
        if body.find(name, 0, length) >= 0:
            return True
    # one byte is found many times faster than four, and most bodies have no escape at all
    return body.find(b"\\", 0, length) >= 0 and body.find(b"\\u00", 0, length) >= 0


def _hints(body: bytes, length: int) -> list[int]:
    return [body.count(each, 0, length) for each in (b'"priority"', b'"timeout"', b"\\u00")]


def _read(decoder: msgspec.json.Decoder[_Members] | msgspec.json.Decoder[_Members | None], data: bytes) -> _Members:
    try:
        return decoder.decode(data) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Reason.BAD_REQUEST, f"the request is not a JSON object as its API has it: {error}") from None


def _number(value: int) -> msgspec.Raw:
    return msgspec.Raw(b"%d" % value)
