# SPDX-License-Identifier: Apache-2.0
"""How one attempt at an endpoint ended: what the endpoint's latency, limit and health learn from."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

__all__ = ["Ending", "Outcome"]


class Ending(Enum):
    """What an attempt tells about its endpoint."""

    ANSWERED = auto()
    """A good answer: its latency counts."""
    FAILED = auto()
    """The endpoint's fault: no connection, a broken or senseless reply, 429 or 5xx. How fast it failed never counts."""
    TIMED_OUT = auto()
    """Nothing came until the deadline: it is at least that slow."""
    CANCELLED = auto()
    """The client left, or a hedge was faster: says nothing but that it took at least so long."""
    BLAMELESS = auto()
    """The request's own fault, as 400: neither a failure nor a latency that others could expect."""


class Outcome(NamedTuple):
    """One attempt, over."""

    ending: Ending
    latency_s: float
    """Dispatched to first byte; without one, to the end of the attempt."""
    held_s: float
    """How long the place was held: what the client's share is charged."""
    retry_after_s: float | None = None
    """As the endpoint asked for."""

    @classmethod
    def unused(cls) -> Outcome:
        """Of a place that was given back before anybody was asked."""
        return cls(ending=Ending.BLAMELESS, latency_s=0.0, held_s=0.0)
