# SPDX-License-Identifier: Apache-2.0
"""How many requests may be in flight at one endpoint: a fixed number, or one that follows the latency.

The adaptive limit asks one question, over and over: does one request more bring more answers, or only longer waits?
While everything it allows is used, it alternates between its level and 15 % less, and compares the latencies of both.
The elasticity e = log(latency_high / latency_low) / log(high / low) is 0 where requests do not disturb each other and
1 where they only queue; by Little's law 1 - e is what throughput gains. At e = 1/2 throughput divided by latency is
greatest (the power of Kleinrock, ICC 1979). The limit grows below e = 0.7 and shrinks above, because late binding has
a queue in front anyway and a place too few costs more than one too many.

So nothing needs to be remembered of how fast the endpoint once was. Gradients against a remembered minimum (Envoy,
Netflix) climb with their own congestion when that is forgotten (envoy PR 11579), choke while the service itself has
become slower, close to a few requests to measure anew (envoy issues 8337, 18152, 38338), and hold down near one a
server that batches, which is slower with every request and faster with all of them.

Simulated, eight workers of 50 ms that are always busy: 7 to 9 where service times vary little, 7.3 to 8 on average
where they are exponential or log-normal, with 92 % to 100 % of the throughput. A loss of 56 of 64 workers is found
within 11 s to 23 s, in one run of six 47 s; their return within 3 s to 18 s.
"""

from __future__ import annotations

from math import inf, log, sqrt
from typing import Protocol

__all__ = ["AdaptiveLimit", "FixedLimit", "Limit"]


class Limit(Protocol):
    """What an endpoint asks before it takes one more, and tells when one has ended."""

    @property
    def limit(self) -> int:
        """Most requests in flight, at least 1."""
        ...

    def finished(self, latency_s: float, in_flight: int, now: float) -> None:
        """A good answer came. in_flight: how many there were when it was dispatched, itself included."""
        ...

    def failed(self, now: float) -> None:
        """An attempt failed or timed out by the endpoint's fault."""
        ...


class FixedLimit:
    """As the config says."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __repr__(self) -> str:
        return f"<FixedLimit {self.limit}>"

    def finished(self, latency_s: float, in_flight: int, now: float) -> None:
        """Changes nothing."""

    def failed(self, now: float) -> None:
        """Changes nothing."""


_TARGET = 0.7
_LOW = 0.85
"""The lower setting, as a part of the level: smaller tells more with fewer samples, and wastes more places."""
_SURE = 2.0
"""Standard errors by which the elasticity must miss the target: queueing makes neighbouring latencies alike, so that
the errors are larger than they look."""
_STEP_LEAST, _STEP_MOST = 0.05, 0.5
_FINE = 0.1
"""With a standard error of the elasticity no greater than this, and still no decision, it is where it should be."""
_LEAST_SAMPLES, _MOST_SAMPLES = 16, 64
_STALE = 40.0
"""Times the latency after which a window is begun anew: filled without a break it takes 16 of them at most."""
_MEMORY = 16
"""Of the mean latency, and of the part of attempts that failed, in attempts."""
_TROUBLE = 0.5
"""Part of the last attempts that failed. Under overload some always miss their deadlines because they waited in front,
which says nothing about how many the endpoint can take at once; with 0.2 the limit of D14 sank to half."""
_RESUMED = 0.9
"""Of the level before: TCP takes up half, but its losses come from congestion, and outages do not."""
_SHORTEST_S = 1e-5


class _Samples:
    """Latencies at one setting: their logarithms, which long ones do not dominate."""

    __slots__ = ("_count", "_squares", "_total")

    def __init__(self) -> None:
        self._count = self._total = self._squares = 0.0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, latency_s: float) -> None:
        value = log(max(latency_s, _SHORTEST_S))
        self._count += 1
        self._total += value
        self._squares += value * value

    def fade(self) -> None:
        """Count half from now on."""
        self._count, self._total, self._squares = self._count / 2, self._total / 2, self._squares / 2

    @property
    def mean(self) -> float:
        return self._total / self._count

    @property
    def variance(self) -> float:
        """Of the mean."""
        return max(0.0, self._squares / self._count - self.mean**2) / self._count


class AdaptiveLimit:
    """floor, ceiling: the limit is never outside. It begins at their geometric mean, and grows only while it is used.

    Failures, where they are many, shrink it by their part at most once per latency; once answers come again it takes
    up to nine tenths of what it was by one more for each answer, and the rest by elasticity.
    """

    __slots__ = (
        "_ceiling",
        "_counted",
        "_failing",
        "_floor",
        "_grew",
        "_high",
        "_is_low",
        "_latency_s",
        "_least",
        "_level",
        "_low",
        "_proven",
        "_shrunk",
        "_since",
        "_step",
        "limit",
    )

    def __init__(self, floor: int, ceiling: int) -> None:
        self._floor = floor
        self._ceiling = max(floor, ceiling)
        self._least = min(floor + 1, self._ceiling)
        """Of the level: with nothing below it, there would be nothing to compare."""
        self._level = max(float(self._least), sqrt(self._floor * self._ceiling))
        """The higher setting, not rounded."""
        self._is_low = False
        self._low, self._high = _Samples(), _Samples()
        self._counted = 0
        """Samples in the present window."""
        self._since = 0.0
        """When the present window began: answers that came before belong to the setting before."""
        self._step = _STEP_MOST
        self._grew = False
        self._latency_s: float | None = None
        self._failing = 0.0
        self._shrunk = -inf
        """When failures last did so."""
        self._proven = 0.0
        """What is taken up again without asking, after failures."""
        self.limit = self._settings()[1]

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.limit}, {self._floor} to {self._ceiling}>"

    def finished(self, latency_s: float, in_flight: int, now: float) -> None:
        """See Limit. An answer counts where its request had taken the last place there was."""
        self._failing -= self._failing / _MEMORY
        known = self._latency_s
        self._latency_s = latency_s if known is None else known + (latency_s - known) / _MEMORY
        if in_flight < self.limit:
            return
        if self._level < self._proven:
            self._move_to(self._level + 1, now)
            if self._level >= self._proven:
                self._proven = 0.0
        elif in_flight == self.limit and now >= self._since:
            self._count(latency_s, now)

    def failed(self, now: float) -> None:
        """See Limit."""
        self._failing += (1 - self._failing) / _MEMORY
        if self._failing < _TROUBLE or now - self._shrunk < (self._latency_s or 0.0):
            return
        self._shrunk = now
        self._proven = max(self._proven, self._level * _RESUMED)
        self._step = _STEP_MOST / 2
        self._move_to(self._level * (1 - self._failing / 2), now)

    def adopt(self, limit: int, now: float) -> None:
        """Go on from what another one found, who saw other answers of the same endpoint."""
        self._move_to(float(limit), now)

    def _settings(self) -> tuple[int, int]:
        high = round(self._level)
        return max(self._floor, min(high - 1, round(high * _LOW))), high

    def _count(self, latency_s: float, now: float) -> None:
        if now - self._since > _STALE * (self._latency_s or 0.0):
            self._move_to(self._level, now)
            return
        (self._low if self._is_low else self._high).add(latency_s)
        self._counted += 1
        if self._counted >= min(max(_LEAST_SAMPLES, 4 * self.limit), _MOST_SAMPLES):
            self._judge(now)

    def _judge(self, now: float) -> None:
        """A window is over: move, or gather more at the other setting."""
        low, high = self._settings()
        if self._low and self._high and low < high:
            span = log(high / low)
            off = (self._high.mean - self._low.mean) / span - _TARGET
            error = sqrt(self._high.variance + self._low.variance) / span
            if abs(off) > _SURE * error:
                self._move(grow=off < 0, now=now)
                return
            if error < _FINE:
                self._low.fade()
                self._high.fade()
        self._begin(now, low=not self._is_low)

    def _move(self, *, grow: bool, now: float) -> None:
        """Steps lengthen in one direction and shorten at every turn."""
        same = grow == self._grew
        self._step = min(_STEP_MOST, self._step * 1.5) if same else max(_STEP_LEAST, self._step / 2)
        self._grew = grow
        step = max(0.5, self._step * self._level)
        self._move_to(self._level + step if grow else self._level - step / (1 + self._step), now)

    def _move_to(self, level: float, now: float) -> None:
        self._level = min(max(level, float(self._least)), float(self._ceiling))
        self._low, self._high = _Samples(), _Samples()
        self._begin(now, low=False)

    def _begin(self, now: float, *, low: bool) -> None:
        self._is_low = low
        self.limit = self._settings()[0 if low else 1]
        self._counted = 0
        # By then what is answered was asked under this setting.
        self._since = now + (self._latency_s or 0.0)
