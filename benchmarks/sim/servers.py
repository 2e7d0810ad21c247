# SPDX-License-Identifier: Apache-2.0
"""Simulated backends: slots with a queue, cores shared by all work in flight, and answers that fail at once.

They know nothing of gateways. `begin` takes work and calls back when it is done; `cancel` ends it without a call.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Protocol

from benchmarks.sim.events import Act, Events

__all__ = ["FailingServer", "Server", "SharedServer", "SlotServer", "Work"]


class Work:
    """One request as a server sees it."""

    __slots__ = ("done", "failed", "over", "seconds")

    def __init__(self, seconds: float, done: Act) -> None:
        self.seconds = seconds
        self.done = done
        self.over = False
        self.failed = False


class Server(Protocol):
    """What can be asked to do work."""

    @property
    def in_flight(self) -> int:
        """Begun and not over."""
        ...

    def begin(self, seconds: float, done: Act) -> Work:
        """Start or queue so much work, seconds on one idle core."""
        ...

    def cancel(self, work: Work) -> None:
        """End it; its `done` is not called."""
        ...


class SlotServer:
    """So many at once, each at full speed; what is beyond waits in line, first come first served."""

    def __init__(self, events: Events, slots: int = 1, speed: float = 1.0) -> None:
        self._events = events
        self.slots = slots
        self.speed = speed
        self.in_flight = 0
        self._busy = 0
        self._queue: deque[Work] = deque()

    def begin(self, seconds: float, done: Act) -> Work:
        """Start it where a slot is free."""
        work = Work(seconds, done)
        self.in_flight += 1
        if self._busy < self.slots:
            self._start(work)
        else:
            self._queue.append(work)
        return work

    def cancel(self, work: Work) -> None:
        """A queued one leaves the queue; a running one frees its slot now."""
        if work.over:
            return
        work.over = True
        self.in_flight -= 1
        try:
            self._queue.remove(work)
        except ValueError:
            self._next()

    def _start(self, work: Work) -> None:
        self._busy += 1
        self._events.after(work.seconds / self.speed, lambda: self._finish(work))

    def _finish(self, work: Work) -> None:
        if work.over:
            return
        work.over = True
        self.in_flight -= 1
        self._next()
        work.done()

    def _next(self) -> None:
        self._busy -= 1
        if self._queue:
            self._start(self._queue.popleft())


class SharedServer:
    """Cores shared evenly by all work in flight, each piece on one core at most; antagonists take cores away.

    Kept in virtual time: how much work a piece present from the beginning would have got until now.
    """

    def __init__(self, events: Events, cores: float) -> None:
        self._events = events
        self._cores = cores
        self.in_flight = 0
        self._virtual = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, Work]] = []
        self._sequence = 0
        self._version = 0
        self._answered = 0
        self._spent = 0.0

    @property
    def accounts(self) -> tuple[int, float]:
        """Requests answered and core seconds spent since the beginning."""
        return self._answered, self._spent

    @property
    def cores(self) -> float:
        """What the antagonists leave."""
        return self._cores

    @cores.setter
    def cores(self, cores: float) -> None:
        self._advance()
        self._cores = cores
        self._plan()

    def begin(self, seconds: float, done: Act) -> Work:
        """Starts at once; everything in flight becomes slower where the cores do not suffice."""
        self._advance()
        work = Work(seconds, done)
        self.in_flight += 1
        self._sequence += 1
        heapq.heappush(self._ends, (self._virtual + seconds, self._sequence, work))
        self._plan()
        return work

    def cancel(self, work: Work) -> None:
        """Its share of the cores goes to the others."""
        if work.over:
            return
        self._advance()
        work.over = True
        self.in_flight -= 1
        self._plan()

    def _rate(self) -> float:
        return 1.0 if self.in_flight <= self._cores else self._cores / self.in_flight

    def _advance(self) -> None:
        now = self._events.now
        if self.in_flight:
            progress = (now - self._since) * self._rate()
            self._virtual += progress
            self._spent += progress * self.in_flight
        self._since = now

    def _plan(self) -> None:
        """One event for whatever ends first; earlier plans are void."""
        self._version += 1
        while self._ends and self._ends[0][2].over:
            heapq.heappop(self._ends)
        rate = self._rate()
        if self._ends and rate > 0.0:
            version = self._version
            self._events.after(max(0.0, self._ends[0][0] - self._virtual) / rate, lambda: self._finish(version))

    def _finish(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        virtual, _, work = heapq.heappop(self._ends)
        self._virtual = max(self._virtual, virtual)
        work.over = True
        self.in_flight -= 1
        self._answered += 1
        self._plan()
        work.done()


class FailingServer:
    """Answers everything at once, with an error: what attracts traffic under every rule that believes its latency."""

    def __init__(self, events: Events, after_s: float) -> None:
        self._events = events
        self._after_s = after_s
        self.in_flight = 0

    def begin(self, seconds: float, done: Act) -> Work:
        """Fails, however much work it is."""
        work = Work(seconds, done)
        work.failed = True
        self.in_flight += 1
        self._events.after(self._after_s, lambda: self._finish(work))
        return work

    def cancel(self, work: Work) -> None:
        """Ends it."""
        if not work.over:
            work.over = True
            self.in_flight -= 1

    def _finish(self, work: Work) -> None:
        if not work.over:
            work.over = True
            self.in_flight -= 1
            work.done()
