# SPDX-License-Identifier: Apache-2.0
"""The timers of all QUIC connections: one heap for a worker, and one alarm on the loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Protocol

from proxy.timers import TimerHeap

__all__ = ["Alarms", "Rung"]


class Rung(Hashable, Protocol):
    """A connection that an alarm may ring for."""

    def ring(self, now: float) -> None:
        """Its instant has come. Raises nothing: one connection's fault must not stop the timers of all."""
        ...


class Alarms:
    """One timer heap for a worker and the one alarm on the loop that serves it.

    Each packet moves its connection's timer, nearly always later, so the alarm stays where it is and looks again when
    it rings: moving it as well cost 3 us each time, three times a request.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._heap: TimerHeap[Rung] = TimerHeap()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    def set(self, peer: Rung, when: float | None) -> None:
        """Ring for `peer` at `when`, monotonic seconds; None: never."""
        self._heap.set(peer, when)
        if when is not None and when < self._armed_for:
            self._arm(when)

    def close(self) -> None:
        """Ring no more."""
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = when
        # In whole ms, rounded up: uvloop rounds to the nearest, and a timer set for 0.4 ms would ring again and again
        # until it is due.
        delay_ms = max(0, math.ceil((when - self._clock()) * 1e3))
        self._handle = self._loop.call_later(delay_ms / 1e3, self._ring)

    def _ring(self) -> None:
        self._handle, self._armed_for = None, math.inf
        now = self._clock()
        for peer in self._heap.pop_due(now):
            peer.ring(now)
        when = self._heap.next()
        if when is not None and when < self._armed_for:
            self._arm(when)
