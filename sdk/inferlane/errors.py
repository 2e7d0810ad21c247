# SPDX-License-Identifier: Apache-2.0
"""Why a request was refused: one short list for HTTP, streams and datagrams, and the exceptions that carry it.

InferlaneError
|-- Refused              the gateway or a backend said no; `reason` says why
`-- ConnectionFailed     nobody answered: no route, no handshake, the connection broke
"""

from __future__ import annotations

from enum import Enum

__all__ = ["ConnectionFailed", "InferlaneError", "Reason", "Refused"]


class Reason(Enum):
    """A refusal's name, its code on the wire (docs/wire.md) and its HTTP status.

    The names label metrics and the `reason` of problem documents, so they never change meaning.
    """

    BAD_REQUEST = ("bad_request", 1, 400)
    INVALID_TENSOR = ("invalid_tensor", 2, 400)
    UNKNOWN_MODEL = ("unknown_model", 3, 404)
    NOT_FOUND = ("not_found", 4, 404)
    METHOD_NOT_ALLOWED = ("method_not_allowed", 5, 405)
    TOO_LARGE = ("too_large", 6, 413)
    USE_STREAM = ("use_stream", 7, 413)
    FIELDS_TOO_LARGE = ("fields_too_large", 8, 431)
    QUEUE_FULL = ("queue_full", 16, 429)
    QUEUE_TIMEOUT = ("queue_timeout", 17, 429)
    NO_ENDPOINT = ("no_endpoint", 18, 503)
    DRAINING = ("draining", 19, 503)
    BACKEND_FAILED = ("backend_failed", 20, 502)
    DEADLINE = ("deadline", 21, 504)
    CANCELLED = ("cancelled", 22, 499)
    INTERNAL = ("internal", 23, 500)
    EVICTED = ("evicted", 24, 429)
    TOO_LATE = ("too_late", 25, 504)
    STALLED = ("stalled", 26, 504)

    def __init__(self, label: str, code: int, status: int) -> None:
        self.label = label
        self.code = code
        self.status = status

    def __str__(self) -> str:
        return self.label

    @classmethod
    def from_code(cls, code: int) -> Reason:
        """The reason with this wire code; an unknown code (a newer peer's) reads as INTERNAL."""
        return _BY_CODE.get(code, cls.INTERNAL)

    @classmethod
    def from_label(cls, label: str) -> Reason:
        """The reason with this name; an unknown name (a newer peer's) reads as INTERNAL."""
        return _BY_LABEL.get(label, cls.INTERNAL)


_BY_CODE = {reason.code: reason for reason in Reason}
_BY_LABEL = {reason.label: reason for reason in Reason}


class InferlaneError(Exception):
    """Anything this package raises on purpose."""


class Refused(InferlaneError):  # noqa: N818  a refusal is an answer, not a failure of ours
    """The request was answered with a refusal.

    reason: from the fixed list above; detail: one sentence that says what to do about it;
    retry_after_s: seconds after which asking again may help, None where it will not;
    status: the HTTP status, which a backend may have chosen itself.
    """

    def __init__(
        self, reason: Reason, detail: str = "", *, retry_after_s: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(f"{reason.label}: {detail}" if detail else reason.label)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.status = reason.status if status is None else status


class ConnectionFailed(InferlaneError):  # noqa: N818
    """The gateway could not be reached, or the connection broke before an answer came."""
