# SPDX-License-Identifier: Apache-2.0
"""What a reply or an error says of the endpoint it came from, and whether another endpoint may be asked instead."""

from __future__ import annotations

from asyncio import CancelledError
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from backends.messages import Fields, Reply
from backends.outcome import Ending, Outcome
from inferlane.errors import Reason, Refused

__all__ = ["may_retry", "outcome_of", "retry_after_s"]

_TOO_MANY_REQUESTS = 429
# The request's own fault, whoever is asked: no such method, no such version of HTTP.
_NOT_IMPLEMENTED = frozenset({501, 505})
# Loops fire early by up to their clock's resolution (uvloop: 1 ms): so close to it, it was the deadline.
_EARLY_S = 2e-3
# What a refusal means where its status alone would mislead: an endpoint that is a gateway tells its deadlines, too.
_REFUSALS = {
    Reason.DEADLINE: Ending.TIMED_OUT,
    Reason.TOO_LATE: Ending.BLAMELESS,
    Reason.CANCELLED: Ending.CANCELLED,
}


def outcome_of(
    result: Reply | BaseException, *, dispatched: float, first_byte: float | None, now: float, deadline: float
) -> Outcome:
    """How an attempt ended. All instants are monotonic seconds; first_byte: None where no reply came.

    500 counts as a failure as 502 and 503 do: an endpoint that answers it at once must not look like the fastest one
    (linkerd2 issue 11669). A cancellation at or after the deadline is the deadline's.
    """
    retry_after = None
    if isinstance(result, Reply):
        ending = _of_status(result.status)
        if ending is Ending.FAILED:
            retry_after = retry_after_s(result.fields)
    elif isinstance(result, Refused):
        ending = _REFUSALS.get(result.reason) or _of_status(result.status)
        retry_after = result.retry_after_s if ending is Ending.FAILED else None
    elif isinstance(result, CancelledError):
        ending = Ending.TIMED_OUT if now >= deadline - _EARLY_S else Ending.CANCELLED
    elif isinstance(result, TimeoutError):
        ending = Ending.TIMED_OUT
    else:
        ending = Ending.FAILED  # a fault of ours that this endpoint brings to light: others may do better
    return Outcome(
        ending=ending,
        latency_s=max(0.0, (now if first_byte is None else first_byte) - dispatched),
        held_s=max(0.0, now - dispatched),
        retry_after_s=retry_after,
    )


def may_retry(result: Reply | BaseException | None, ending: Ending) -> bool:
    """Whether it was the endpoint that failed, in a way that another one may not. Inference has no side effects, so
    a 500 after the model ran may be repeated as well."""
    return ending is Ending.FAILED and isinstance(result, (Reply, Refused))


def retry_after_s(fields: Fields) -> float | None:
    """Seconds of a reply's Retry-After (RFC 9110 section 10.2.3); a date counts from the reply's own Date, so that
    nobody's clock matters. None: it has none that makes sense."""
    wanted = _field(fields, b"retry-after")
    if wanted.isdigit():
        return float(wanted[:9])  # 30 years are for ever
    until, sent = _instant(wanted), _instant(_field(fields, b"date"))
    return None if until is None or sent is None else max(0.0, (until - sent).total_seconds())


def _of_status(status: int) -> Ending:
    if status == _TOO_MANY_REQUESTS or (status >= 500 and status not in _NOT_IMPLEMENTED):
        return Ending.FAILED
    return Ending.BLAMELESS if status >= 400 else Ending.ANSWERED


def _field(fields: Fields, name: bytes) -> bytes:
    return next((value.strip() for each, value in fields if each == name), b"")


def _instant(text: bytes) -> datetime | None:
    try:
        found = parsedate_to_datetime(text.decode("ascii"))
    except (ValueError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
