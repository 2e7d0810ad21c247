# SPDX-License-Identifier: Apache-2.0
"""Which header fields pass to a backend and back, and what the few we read ourselves say. Plain functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from backends.messages import Fields

__all__ = ["Said", "duration_text", "is_encoded", "said_by", "to_backend"]

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


@dataclass(slots=True, frozen=True)
class Said:
    """What a reply's fields say to us, and those that its client may see."""

    to_client: Fields
    compute_s: float | None
    """The `compute` part of its Server-Timing, milliseconds there and seconds here; None: not told."""
    queue_s: float | None
    """The `queue` part, likewise: how long the request waited inside the backend."""
    encoded: bool
    """Its body is compressed, so that nobody but its reader can look into it."""
    event_stream: bool
    """Its body is of server-sent events (HTML Living Standard, section 9.2)."""
    json_length: int | None
    """Bytes of JSON before the binary tensors."""
    no_number: bool
    """The length of its JSON is none."""


def to_backend(fields: Fields) -> list[tuple[bytes, bytes]]:
    """The client's fields that a backend may see."""
    return _passing(fields, _NOT_TO_BACKEND)


def said_by(fields: Fields) -> Said:
    """Read a reply's fields, once for all who ask."""
    json_length: bytes | None = None
    timings: dict[bytes, float | None] = {}
    kind: bytes | None = None
    encoded = False
    for name, value in fields:
        if name not in _READ:
            continue
        if name == b"content-type":
            kind = value if kind is None else kind
        elif name == b"server-timing":
            _read_timings(value, timings)
        elif name == b"content-encoding":
            encoded = encoded or value.lower() != b"identity"
        elif json_length is None:
            json_length = value
    number = None if json_length is None else _decimal(json_length)
    return Said(
        tuple(_passing(fields, _NOT_TO_CLIENT)),
        timings.get(b"compute"),
        timings.get(b"queue"),
        encoded,
        kind is not None and _is_event_stream(kind),
        number,
        json_length is not None and number is None,
    )


def _is_event_stream(kind: bytes) -> bool:
    return kind[:17].lower() == b"text/event-stream" and kind[17:18] in (b"", b";", b" ", b"\t")


def is_encoded(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request's body is compressed, so that nobody but its reader can look into it."""
    return any(name == b"content-encoding" and value.lower() != b"identity" for name, value in fields)


_READ = frozenset({b"content-type", b"server-timing", b"content-encoding", b"inference-header-content-length"})


def _passing(fields: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    passing = []
    nominated: set[bytes] = set()
    for field in fields:
        name = field[0]
        if name == b"connection":
            nominated.update(option.strip(b" \t").lower() for option in field[1].split(b","))
        elif name not in dropped and not name.startswith(_PREFIXES):
            passing.append(field)
    if nominated and nominated - _USUAL_OPTIONS:
        return [field for field in passing if field[0] not in nominated]
    return passing


_USUAL_OPTIONS = frozenset({b"", b"close", b"keep-alive"})  # nominate nothing that could still be there


def _decimal(value: bytes) -> int | None:
    # int() would take "+3", "0_3" and blanks; 18 digits are an exabyte
    return int(value) if value.isdigit() and len(value) <= 18 else None


def _read_timings(value: bytes, timings: dict[bytes, float | None]) -> None:
    """Durations by their labels, seconds; of those with one label the first counts."""
    for metric in value.split(b","):
        label, _, parameters = metric.partition(b";")
        label = label.strip(b" \t")
        if label in _OURS and label not in timings:
            timings[label] = _duration(parameters)


_OURS = (b"compute", b"queue")


def _duration(parameters: bytes) -> float | None:
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name == b"dur" or name.strip(b" \t").lower() == b"dur":
            try:
                milliseconds = float(value.strip(b' \t"'))
            except ValueError:
                return None
            # a number of a day or more, or below zero, or NaN, is no measurement
            return milliseconds / 1e3 if 0 <= milliseconds < 86_400_000 else None
    return None


def duration_text(seconds: float) -> bytes:
    """Remaining time as Inferlane-Timeout carries it: whole milliseconds, microseconds where those are too coarse."""
    microseconds = max(1, int(seconds * 1e6))
    return b"%dms" % (microseconds // 1000) if microseconds >= 10_000 else b"%dus" % microseconds
