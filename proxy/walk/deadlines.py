# SPDX-License-Identifier: Apache-2.0
"""The instants until which walks may go on: one timer on the loop for all of them, where asyncio has one for each.

Nearly every walk is over long before its time, so entering and leaving touch no timer, and moving an instant later
touches nothing at all: an entry whose walk is over, or has more time, is seen when it comes up.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from math import inf
from types import TracebackType
from typing import Self

__all__ = ["Deadline", "Deadlines"]

_SPARE = 64
"""Entries of walks that are over before they are swept out: as many as there are others, and so many more."""


class Deadline:
    """`with deadlines.until(when) as limit`: what runs in here is cancelled at `limit.when`, and ends as TimeoutError.

    As `asyncio.timeout_at`, but that monotonic seconds are the clock's that the deadlines have.
    """

    __slots__ = ("_cancelling", "_deadlines", "_task", "armed", "expired", "when")

    def __init__(self, deadlines: Deadlines, when: float) -> None:
        self._deadlines = deadlines
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.armed = inf
        """The instant of its entry among the deadlines; inf: it has none."""
        self.when = when
        """Assign to move it later; inf: never. Earlier is `move`'s."""
        self.expired = False

    def __repr__(self) -> str:
        state = "expired" if self.expired else "over" if self._task is None else "running"
        return f"<Deadline {state} at {self.when:g}>"

    def move(self, when: float) -> None:
        """Anywhere."""
        self.when = when
        if when < self.armed and self._task is not None:
            self._deadlines.arm(self)

    @property
    def running(self) -> bool:
        """Whether its task is still in it."""
        return self._task is not None

    def expire(self) -> None:
        """Its time has come."""
        if self._task is not None:
            self.expired = True
            self._task.cancel()

    def __enter__(self) -> Self:
        self._task = task = asyncio.current_task()
        assert task is not None  # a walk is a task's
        self._cancelling = task.cancelling()
        self._deadlines.begun(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._deadlines.ended()
        if self.expired and task is not None:
            # More cancellations than ours: the client left as well, and nobody is there to be told.
            ours_alone = task.uncancel() <= self._cancelling
            if ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error


class Deadlines:
    """Those of one pipeline. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Deadline]] = []
        self._sequence = count()  # equal instants must not compare deadlines
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = inf

    def __repr__(self) -> str:
        return f"<Deadlines of {self._running} walks, {len(self._heap)} entries>"

    def until(self, when: float) -> Deadline:
        """One more, to be entered by the task that shall meet it; inf: none yet."""
        return Deadline(self, when)

    def begun(self, deadline: Deadline) -> None:
        """Its task has entered."""
        self._running += 1
        if deadline.when < inf:
            self.arm(deadline)

    def ended(self) -> None:
        """A task has left."""
        self._running -= 1
        if len(self._heap) > 2 * self._running + _SPARE:
            self._heap = [entry for entry in self._heap if _counts(entry)]
            heapq.heapify(self._heap)

    def arm(self, deadline: Deadline) -> None:
        """Look at it when its instant comes."""
        when = deadline.armed = deadline.when
        heapq.heappush(self._heap, (when, next(self._sequence), deadline))
        if when < self._timer_for:
            self._set_timer(when)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_for = when
        self._timer = asyncio.get_running_loop().call_later(max(0.0, when - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        # Loops fire early by up to their clock's resolution (uvloop: 1 ms): what it was set for is due.
        now = max(self._clock(), self._timer_for)
        self._timer, self._timer_for = None, inf
        while self._heap and (self._heap[0][0] <= now or not _counts(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if _counts(entry):
                self._due(entry[2], now)
        if self._heap:
            self._set_timer(self._heap[0][0])

    def _due(self, deadline: Deadline, now: float) -> None:
        deadline.armed = inf
        if deadline.when <= now:
            deadline.expire()
        elif deadline.when < inf:
            self.arm(deadline)


def _counts(entry: tuple[float, int, Deadline]) -> bool:
    """Whether its walk goes on, and it is the one entry of it that counts."""
    when, _, deadline = entry
    return deadline.running and deadline.armed == when
