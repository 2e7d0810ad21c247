# SPDX-License-Identifier: Apache-2.0
"""Whether an endpoint is asked at all: what failed requests and failed probes say, and how it comes back.

    HEALTHY --(failures in a row, or too large a part of them; probes failed)--> EJECTED
    EJECTED --(its time is up, and one request goes there)--> PROBING
    PROBING --(that one is answered)--> HEALTHY, --(it fails)--> EJECTED for twice as long

Requests may eject only as many as the pool allows. Probes may eject all; what they ejected, only they bring back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from backends.pool_settings import HealthSettings

__all__ = ["Alone", "EndpointHealth", "HealthRules", "HealthState", "Peers"]

WINDOW_S = 10.0
"""What the failure rate is taken of, seconds."""
LEAST_REQUESTS = 20
"""Fewer in the window say nothing of a rate."""
MOST_TIMES = 12
"""An ejection lasts at most so many times the configured one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """When an endpoint is ejected; see `backends.pool_settings.HealthSettings`."""

    failures: int = 5
    """Requests failed in a row."""
    failure_rate: float = 0.5
    """Part of the last 10 s' requests, 0..1."""
    eject_s: float = 5.0
    """The first ejection, seconds."""
    max_ejected: float = 0.5
    """Part of a pool that failed requests may eject, 0..1."""
    probe_failures: int = 2
    """Probes failed in a row."""

    @classmethod
    def of(cls, settings: HealthSettings) -> HealthRules:
        """As the config says."""
        return cls(
            failures=settings.failures,
            failure_rate=settings.failure_rate,
            eject_s=settings.eject,
            max_ejected=settings.max_ejected,
            probe_failures=settings.probe.failures if settings.probe is not None else cls().probe_failures,
        )


class HealthState(Enum):
    """Where an endpoint stands."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    PROBING = "probing"
    """One request is out to see whether it answers again."""


_MOVES = {
    HealthState.HEALTHY: {HealthState.EJECTED},
    HealthState.EJECTED: {HealthState.PROBING, HealthState.HEALTHY},
    HealthState.PROBING: {HealthState.HEALTHY, HealthState.EJECTED},
}


class Peers(Protocol):
    """What the pool says of the endpoint's company."""

    def may_eject(self) -> bool:
        """Whether failed requests may take one more endpoint out."""
        ...

    def others_serve(self) -> bool:
        """Whether another endpoint is healthy and takes requests."""
        ...


class Alone:
    """No company: nobody else could answer, so nothing is ejected for failed requests."""

    def may_eject(self) -> bool:
        """Never."""
        return False

    def others_serve(self) -> bool:
        """Nobody."""
        return False


class EndpointHealth:
    """One endpoint's state and the evidence for it. `peers` is set by the pool that it joins."""

    __slots__ = (
        "_ejected_for_s",
        "_failed_in_row",
        "_probes_failed",
        "_seconds",
        "_until",
        "down",
        "peers",
        "returned_at",
        "rules",
        "since",
        "state",
    )

    def __init__(self, rules: HealthRules | None = None) -> None:
        self.rules = rules or HealthRules()
        self.peers: Peers = Alone()
        self.state = HealthState.HEALTHY
        self.since = float("-inf")
        """Monotonic seconds of the last change of state; what was asked before it tells nothing new."""
        self.down = False
        """Ejected by probes: no request is tried there."""
        self.returned_at: float | None = None
        """When it came back into, or joined, a pool that others served meanwhile: it starts slowly from there."""
        self._until = 0.0
        self._ejected_for_s = 0.0
        self._failed_in_row = 0
        self._probes_failed = 0
        self._seconds: deque[list[int]] = deque()  # [second, requests, failed], at most as many as the window is long

    def __repr__(self) -> str:
        why = " by probes" if self.down else ""
        return f"<EndpointHealth {self.state.value}{why}, {self._failed_in_row} failed in a row>"

    def admits(self, now: float) -> bool:
        """Whether a request may go there: always while healthy, one when an ejection's time is up."""
        return self.state is HealthState.HEALTHY or self.due(now)

    def due(self, now: float) -> bool:
        """Whether an ejection's time is up, so that the next request tries it."""
        return self.state is HealthState.EJECTED and not self.down and now >= self._until

    @property
    def tried_again_at(self) -> float | None:
        """Monotonic seconds at which a request may try it; None: it is not waiting for that."""
        return self._until if self.state is HealthState.EJECTED and not self.down else None

    @property
    def failing(self) -> bool:
        """Whether it is still asked though it failed as often in a row as ejects, because the pool cannot spare it."""
        return self.state is HealthState.HEALTHY and self._failed_in_row >= self.rules.failures

    def taken(self, now: float) -> None:
        """A request goes there now."""
        if self.due(now):
            self._move(HealthState.PROBING, now)

    def answered(self, now: float) -> None:
        """A request that went there after the last change of state was answered."""
        self._failed_in_row = 0
        if self.state is HealthState.HEALTHY:
            self._count(0, now)
        elif not self.down:
            self._return(now)

    def failed(self, now: float) -> None:
        """A request that went there after the last change of state failed."""
        self._failed_in_row += 1
        if self.state is HealthState.PROBING:
            self._eject(now)
        elif self.state is HealthState.HEALTHY:
            self._count(1, now)
            if self._bad() and self.peers.may_eject():
                self._eject(now)

    def undecided(self, now: float) -> None:
        """A request that went there ended without telling anything; if it was the one that tries, the next one does."""
        if self.state is HealthState.PROBING:
            self._move(HealthState.EJECTED, now)
            self._until = now

    def probe_failed(self, now: float) -> None:
        """An active probe was not answered as it should be."""
        self._probes_failed += 1
        if self.down or self._probes_failed < self.rules.probe_failures:
            return
        self.down = True
        if self.state is not HealthState.EJECTED:
            self._move(HealthState.EJECTED, now)

    def probe_succeeded(self, now: float) -> None:
        """An active probe was answered: it ends what probes began, and leaves what requests told."""
        self._probes_failed = 0
        if self.down:
            self.down = False
            self._return(now)

    def joined(self, now: float) -> None:
        """It is new in a running pool: it starts slowly if others serve there."""
        self.returned_at = now if self.peers.others_serve() else None

    def _bad(self) -> bool:
        if self._failed_in_row >= self.rules.failures:
            return True
        requests = sum(second[1] for second in self._seconds)
        failed = sum(second[2] for second in self._seconds)
        return requests >= LEAST_REQUESTS and failed > 0 and failed >= self.rules.failure_rate * requests

    def _count(self, failed: int, now: float) -> None:
        second = int(now // 1)
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append([second, 0, 0])
        while self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += failed

    def _eject(self, now: float) -> None:
        """For twice as long as before, unless it had been well for longer than it was out."""
        first = self.rules.eject_s
        relapse = self.state is HealthState.PROBING or now - self.since < self._ejected_for_s
        self._ejected_for_s = min(self._ejected_for_s * 2, first * MOST_TIMES) if relapse else first
        self._move(HealthState.EJECTED, now)
        self._until = now + self._ejected_for_s

    def _return(self, now: float) -> None:
        self.returned_at = now if self.peers.others_serve() else None
        self._failed_in_row = 0
        self._seconds.clear()
        self._move(HealthState.HEALTHY, now)

    def _move(self, state: HealthState, now: float) -> None:
        if state not in _MOVES[self.state]:
            raise RuntimeError(f"{self!r} cannot become {state.value}")
        self.state = state
        self.since = now
