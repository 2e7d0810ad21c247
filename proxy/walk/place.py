# SPDX-License-Identifier: Apache-2.0
"""What a request holds while an endpoint answers it."""

from __future__ import annotations

from collections.abc import Callable

from backends.endpoint import Endpoint
from backends.messages import Request
from backends.outcome import Outcome

__all__ = ["Place"]


class Place:
    """One of an endpoint's places, given to one request; `leave` gives it back, whatever happened."""

    __slots__ = ("_cost_s", "_is_left", "_left", "endpoint", "evicted", "protected", "rank", "request")

    def __init__(
        self,
        left: Callable[[Place, Outcome, float], None],
        endpoint: Endpoint,
        request: Request,
        rank: int,
        cost_s: float,
    ) -> None:
        self._left = left
        self._cost_s = cost_s
        self._is_left = False
        self.endpoint = endpoint
        self.request = request
        self.rank = rank
        self.evicted = False
        self.protected = False
        """It was its class's turn though a higher one waited: taking it back would take the turn back."""

    def __repr__(self) -> str:
        return f"<Place at {self.endpoint.name}, rank {self.rank}{', left' if self._is_left else ''}>"

    def leave(self, outcome: Outcome) -> None:
        """The attempt is over; the next in order gets the place."""
        if self._is_left:
            raise RuntimeError(f"{self!r} was left twice")
        self._is_left = True
        self._left(self, outcome, self._cost_s)
