# SPDX-License-Identifier: Apache-2.0
"""A reply that is no 2xx, with its problem document (RFC 9457) -> the exception that applications catch. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from inferlane.errors import Reason, Refused

__all__ = ["read_problem"]

_LONGEST_DETAIL = 2000
# For refusals that name no reason: another server's, or a proxy's on the way.
_OF_STATUS = {
    404: Reason.NOT_FOUND,
    405: Reason.METHOD_NOT_ALLOWED,
    413: Reason.TOO_LARGE,
    429: Reason.QUEUE_FULL,
    431: Reason.FIELDS_TOO_LARGE,
    499: Reason.CANCELLED,
    502: Reason.BACKEND_FAILED,
    503: Reason.NO_ENDPOINT,
    504: Reason.DEADLINE,
}


def read_problem(status: int, body: bytes, *, retry_after_s: float | None = None) -> Refused:
    """What such a reply says. retry_after_s: what its head says."""
    document = _document(body)
    label = document.get("reason")
    reason = Reason.from_label(label) if isinstance(label, str) else _of_status(status)
    retry_ms = document.get("retry_after_ms")
    if isinstance(retry_ms, int | float) and not isinstance(retry_ms, bool) and retry_ms >= 0:
        retry_after_s = retry_ms / 1e3  # exact, where Retry-After has whole seconds (RFC 9110 section 10.2.3)
    # `error` is the Open Inference Protocol's own member, which other servers send alone.
    detail = document.get("detail") or document.get("error") or body.decode("utf-8", "replace").strip()
    return Refused(reason, str(detail)[:_LONGEST_DETAIL], retry_after_s=retry_after_s, status=status)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}  # not JSON: the text itself becomes the detail
    return document if isinstance(document, dict) else {}


def _of_status(status: int) -> Reason:
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    return Reason.BAD_REQUEST if 400 <= status < 500 else Reason.INTERNAL
