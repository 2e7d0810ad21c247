# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible API: what the gateway reads of a request's body, and how it says errors there.

Bodies pass as they are; the model's name decides the pool and `stream` what the deadline means.
Shape: https://platform.openai.com/docs/api-reference/chat and .../errors, as their own clients read it.
"""

from __future__ import annotations

import re

import msgspec

from inferlane.errors import Reason, Refused

__all__ = ["OpenAiHead", "error_object", "read_head"]

_MAX_MODEL = 255  # as in the paths of the Open Inference Protocol
_CONTROL = re.compile(r"[\x00-\x1f\x7f]").search


class OpenAiHead(msgspec.Struct, frozen=True):
    """What steers a request on a `/v1` path."""

    model: str
    stream: bool | None = False
    """Whether the answer is wanted token by token; None as JSON's null, which clients send for "not said"."""


_decoder = msgspec.json.Decoder(OpenAiHead)


def read_head(body: bytes) -> OpenAiHead:
    """The steering members of a body. Raises Refused BAD_REQUEST where it is no JSON object that names a model."""
    try:
        head = _decoder.decode(body)
    except (msgspec.ValidationError, RecursionError) as error:
        wrong = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refused(
            Reason.BAD_REQUEST, f"the body needs a model, a text, and may have stream, true or false: {wrong}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(Reason.BAD_REQUEST, f"the body is not a JSON object: {error}") from None
    if not head.model or len(head.model.encode(errors="replace")) > _MAX_MODEL or _CONTROL(head.model):
        raise Refused(Reason.BAD_REQUEST, f"model: a name has 1 to {_MAX_MODEL} bytes and no controls")
    return head


def error_object(refusal: Refused) -> dict[str, str | None]:
    """The `error` member as OpenAI's clients read it: they tell kinds by the HTTP status, people by the message."""
    label = refusal.reason.label
    return {"message": refusal.detail or label.replace("_", " "), "type": _kind(refusal), "param": None, "code": label}


def _kind(refusal: Refused) -> str:
    if refusal.status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if refusal.status < 500 else "server_error"
