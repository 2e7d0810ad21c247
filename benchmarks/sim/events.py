# SPDX-License-Identifier: Apache-2.0
"""Simulated time: acts at instants, in order, with nothing asleep in between."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

__all__ = ["Act", "Events"]

Act = Callable[[], None]


class Events:
    """What is still to happen. `now` is what the deciding functions get for monotonic seconds."""

    __slots__ = ("_due", "_sequence", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Act]] = []
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Events at {self.now:.3f} s, {len(self._due)} to come>"

    def at(self, when: float, act: Act) -> None:
        """Call `act` at that instant; of those at one instant the first asked for is the first."""
        self._sequence += 1
        heapq.heappush(self._due, (when if when > self.now else self.now, self._sequence, act))

    def after(self, seconds: float, act: Act) -> None:
        """Call `act` so much later."""
        self.at(self.now + seconds, act)

    def run(self, until: float = inf) -> None:
        """Let happen what is due before `until`, what comes of it included; time then stands there."""
        due = self._due
        while due and due[0][0] < until:
            self.now, _, act = heapq.heappop(due)
            act()
        if until < inf:
            self.now = until
