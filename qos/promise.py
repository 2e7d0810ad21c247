# SPDX-License-Identifier: Apache-2.0
"""What became of a class's promise in one pool, in numbers and words: the parts it was spent on, and who said no.

Whole and disjoint: the client's round trip, then from a request's first byte in to its reply's last byte out; of a
token stream to its first byte, where the deadline ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from inferlane.errors import Reason
from qos.timeline import Timeline

__all__ = [
    "HURRIED",
    "LATE",
    "MISSED",
    "PLACES",
    "REFUSED",
    "Breach",
    "Part",
    "Promise",
    "Refusals",
    "Report",
    "Spent",
    "spent",
]


class Part(Enum):
    """A part of a request's time."""

    __hash__ = object.__hash__  # Enum's own is a Python function, and a report looks up some ten thousand parts

    NETWORK = "network"
    """The client's round trip."""
    UPLOAD = "upload"
    """Its body on the way here."""
    QUEUE = "queue"
    """Waiting here for a place, failed attempts included."""
    BACKEND = "backend"
    """The backend and the way to it, without the next two."""
    BACKEND_QUEUE = "backend_queue"
    """Waiting in the backend."""
    COMPUTE = "compute"
    """The model itself."""
    DOWNLOAD = "download"
    """The reply on its way out."""


LATE = "answered_late"
"""It was answered, but after its deadline."""
HURRIED = "client_deadline"
"""It missed a deadline that its client had set, much shorter than the class's: no promise of ours."""
_MISSED = {
    Reason.DEADLINE.label: "gateway",
    LATE: "gateway",
    Reason.TOO_LATE.label: "gate",
    Reason.QUEUE_TIMEOUT.label: "gate",
}
_REFUSED = {
    Reason.QUEUE_FULL.label: "gate",
    Reason.EVICTED.label: "gate",
    Reason.NO_ENDPOINT.label: "pool",
    Reason.BACKEND_FAILED.label: "endpoint",
    Reason.STALLED.label: "endpoint",
    Reason.DRAINING.label: "gateway",
    Reason.INTERNAL.label: "gateway",
}
MISSED = frozenset(_MISSED)
"""The time was too short."""
REFUSED = frozenset(_REFUSED)
"""There was no answer for another reason that is not the client's."""
PLACES = _MISSED | _REFUSED
"""Who said no, by reason; all others are the client's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What requests took in one part, or as a whole: seconds."""

    median_s: float
    p99_s: float
    share: float
    """Of all their time, 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """Requests that missed the deadline by the same part."""

    part: Part
    share: float
    """Of those that missed, 0..1."""
    median_s: float
    """What these took in it."""
    usual_s: float
    """What those that were in time take in it, their median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """Requests without an answer, for the same reason."""

    reason: str
    place: str
    """Who said no: gate, pool, endpoint, gateway, or client where it was its own fault."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One class in one pool over the window. A pool's name is empty where none was reached."""

    traffic_class: str
    pool: str
    deadline_s: float
    kept: int
    """Answered in time."""
    missed: int
    """Answered late, or refused because the time was too short."""
    refused: int
    """Not answered for another reason that is not the client's."""
    holds: bool
    whole: Spent | None
    """All parts together, but for the round trip; None: nothing was measured."""
    parts: dict[Part, Spent]
    breaches: Sequence[Breach]
    """What broke it, most first."""
    refusals: Sequence[Refusals]
    """Most first, the client's own among them."""
    words: Sequence[str] = ()
    """What this means and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All promises that were asked for in the last `window_s` seconds."""

    window_s: float
    holds: bool
    promises: Sequence[Promise]
    silent: Sequence[str] = field(default_factory=list)
    """Workers of the gateway that did not tell their part."""


def spent(timeline: Timeline, *, streaming: bool = False) -> dict[Part, float]:
    """The seconds of each part that was reached; the one in which the request ended counts up to its end."""
    took: dict[Part, float] = {}
    if timeline.rtt_s is not None:
        took[Part.NETWORK] = timeline.rtt_s
    at = timeline.received
    for part, until in (
        (Part.UPLOAD, timeline.queued),
        (Part.QUEUE, timeline.dispatched),
        (Part.BACKEND, timeline.first_byte),
        (Part.DOWNLOAD, timeline.finished),
    ):
        if part is Part.DOWNLOAD and streaming:
            break
        if until is None and part is Part.UPLOAD and timeline.dispatched is not None:
            continue  # nobody stamped it: the wait began at once
        over = timeline.finished if until is None else until
        if over is not None:
            took[part] = max(0.0, over - at)
        if until is None:
            break
        at = until
    _split_backend(took, timeline)
    return took


def _split_backend(took: dict[Part, float], timeline: Timeline) -> None:
    if Part.BACKEND not in took:
        return
    for part, seconds in ((Part.COMPUTE, timeline.compute_s), (Part.BACKEND_QUEUE, timeline.backend_queue_s)):
        if seconds is not None:
            # A backend may tell of more than there was: a batch's time, or another clock's.
            took[part] = min(seconds, took[Part.BACKEND])
            took[Part.BACKEND] -= took[part]
