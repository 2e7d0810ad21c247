# SPDX-License-Identifier: Apache-2.0
"""Which header fields pass to a backend and back, and what the few we read ourselves say. Plain functions."""

from __future__ import annotations

from collections.abc import Iterable

from backends.messages import Fields

__all__ = [
    "compute_seconds",
    "duration_text",
    "is_encoded",
    "is_event_stream",
    "json_length",
    "queue_seconds",
    "to_backend",
    "to_client",
]

# RFC 9110 section 7.6.1: meant for one connection. `proxy-*` (with RFC 9110 section 11.7) is dropped by its prefix.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
_PREFIXES = (b"proxy-", b"inferlane-")

_NOT_TO_BACKEND = _HOP_BY_HOP | {
    b"host",  # the backend's own authority
    b"content-length",  # the body's framing is ours
    b"expect",  # the body is sent at once, so 100-continue has nothing to ask
    b"authorization",  # what the client proves to the gateway is not for the backend
    b"api-key",  # likewise: Azure's clients of OpenAI's API send theirs here
    b"x-api-key",
    b"cookie",
    b"priority",  # RFC 9218 urgency of the client's connection; the backend gets the class
    b"traceparent",  # the walk's own, below
    b"x-request-id",
    b"inference-header-content-length",  # from Request.json_length
}
_NOT_TO_CLIENT = _HOP_BY_HOP | {
    b"content-length",  # the door frames the body
    b"inference-header-content-length",  # Reply.json_length
    b"server-timing",  # read into Reply.compute_s and backend_queue_s; the door tells the whole walk's
    b"x-request-id",
    b"authorization",  # a server that sends back what it got must not give the gateway's key away
    b"www-authenticate",  # asks for the gateway's key, which is not the client's to give
    b"alt-svc",  # speaks for the backend's origin (RFC 7838), and the client talks to ours
    b"set-cookie",  # likewise, and the client's cookies do not reach the backend
}


def to_backend(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The client's fields that a backend may see."""
    return _passing(fields, _NOT_TO_BACKEND)


def to_client(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The backend's fields that the client may see."""
    return tuple(_passing(fields, _NOT_TO_CLIENT))


def _passing(fields: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    passing = []
    nominated: set[bytes] = set()
    for field in fields:
        name = field[0]
        if name == b"connection":
            nominated.update(option.strip(b" \t").lower() for option in field[1].split(b","))
        elif name not in dropped and not name.startswith(_PREFIXES):
            passing.append(field)
    if nominated - _USUAL_OPTIONS:
        return [field for field in passing if field[0] not in nominated]
    return passing


_USUAL_OPTIONS = frozenset({b"", b"close", b"keep-alive"})  # nominate nothing that could still be there


def json_length(fields: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Bytes of JSON before the binary tensors, where the reply says so. ValueError where it says nonsense."""
    for name, value in fields:
        if name == b"inference-header-content-length":
            length = _decimal(value)
            if length is None:
                raise ValueError("its inference-header-content-length is not a number")
            return length
    return None


def _decimal(value: bytes) -> int | None:
    # int() would take "+3", "0_3" and blanks; 18 digits are an exabyte
    return int(value) if value.isdigit() and len(value) <= 18 else None


def is_event_stream(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a reply is of server-sent events (HTML Living Standard, section 9.2)."""
    for name, value in fields:
        if name == b"content-type":
            return value[:17].lower() == b"text/event-stream" and value[17:18] in (b"", b";", b" ", b"\t")
    return False


def is_encoded(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a body is compressed, so that nobody but its reader can look into it."""
    return any(name == b"content-encoding" and value.lower() != b"identity" for name, value in fields)


def compute_seconds(fields: Iterable[tuple[bytes, bytes]]) -> float | None:
    """The `compute` part of a backend's Server-Timing, milliseconds there and seconds here; None if not told."""
    return _timing(fields, b"compute")


def queue_seconds(fields: Iterable[tuple[bytes, bytes]]) -> float | None:
    """The `queue` part, likewise: how long the request waited inside the backend."""
    return _timing(fields, b"queue")


def _timing(fields: Iterable[tuple[bytes, bytes]], part: bytes) -> float | None:
    for name, value in fields:
        if name == b"server-timing" and part in value:
            for metric in value.split(b","):
                label, *parameters = (each.strip(b" \t") for each in metric.split(b";"))
                if label == part:
                    return _duration(parameters)
    return None


def _duration(parameters: list[bytes]) -> float | None:
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip(b" \t").lower() == b"dur":
            try:
                milliseconds = float(value.strip(b' \t"'))
            except ValueError:
                return None
            # a number of a day or more, or below zero, or NaN, is no measurement
            return milliseconds / 1e3 if 0 <= milliseconds < 86_400_000 else None
    return None


def duration_text(seconds: float) -> str:
    """Remaining time as Inferlane-Timeout carries it: whole milliseconds, microseconds where those are too coarse."""
    microseconds = max(1, int(seconds * 1e6))
    return f"{microseconds // 1000}ms" if microseconds >= 10_000 else f"{microseconds}us"
