# SPDX-License-Identifier: Apache-2.0
"""One place that can answer, and the exact count of what it is answering now."""

from __future__ import annotations

from backends.backend import Backend

__all__ = ["Endpoint"]


class Endpoint:
    """A backend with a name and a number of places.

    name: unique in its pool, for logs and metrics; slots: requests it may have in flight at once.
    Whoever picks it calls `take` before anything else runs, and `release` however the request ends.
    """

    __slots__ = ("backend", "in_flight", "name", "slots")

    def __init__(self, name: str, backend: Backend, slots: int) -> None:
        self.name = name
        self.backend = backend
        self.slots = slots
        self.in_flight = 0

    def __repr__(self) -> str:
        ready = "ready" if self.backend.ready else "not ready"
        return f"<Endpoint {self.name} {ready}, {self.in_flight} of {self.slots} in flight>"

    @property
    def free(self) -> bool:
        """Whether it can take one more request now."""
        return self.in_flight < self.slots and self.backend.ready

    def take(self) -> None:
        """One more request is on its way."""
        if self.in_flight >= self.slots:
            raise RuntimeError(f"{self!r} was given a request that it has no place for")
        self.in_flight += 1

    def release(self) -> None:
        """One request has ended, well or not."""
        if self.in_flight == 0:
            raise RuntimeError(f"{self!r} was released more often than taken")
        self.in_flight -= 1
