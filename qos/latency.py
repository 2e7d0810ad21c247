# SPDX-License-Identifier: Apache-2.0
"""What latencies have been lately: a histogram of fixed size whose weights fade, for quantiles within 5 %.

An observation weighs 1 when it is made and half as much after each half-life. Weights grow with time instead of being
divided by it (forward decay: Cormode et al., ICDE 2009), so that observing touches one bucket.
"""

from __future__ import annotations

from math import exp2, log, sqrt

__all__ = ["LEAST", "Latencies", "TimeNeeded"]

LEAST = 20
"""Of fewer observations, as they weigh now, no quantile is told."""

# Buckets from 10 µs up, each 1.1 times as wide as the one below; its middle is at most 4.9 % from what is in it.
_LOWEST_S = 1e-5
_GROWTH = 1.1
_PER_LOG = 1 / log(_GROWTH)
_BUCKETS = 201  # the last one begins at 1,900 s, behind every deadline that a class can have
_HIGHEST_S = _LOWEST_S * _GROWTH ** (_BUCKETS - 0.5)
_MIDDLES = tuple(_LOWEST_S * _GROWTH**index * sqrt(_GROWTH) for index in range(_BUCKETS))
# A quantile costs some 5 µs and moves slowly, so it is kept so long.
_KEPT_S = 0.01
# Long before the growing weights lose precision (2^1024) or the old ones count for anything.
_RESCALE_AFTER = 64.0


class Latencies:
    """half_life_s: seconds after which an observation counts half.

    Time never runs backwards here: an older `now` counts as the newest one seen.
    """

    __slots__ = ("_at", "_counts", "_half_life_s", "_kept", "_kept_until", "_origin", "_sum", "_weight")

    def __init__(self, half_life_s: float = 10.0) -> None:
        self._half_life_s = half_life_s
        self._counts = [0.0] * _BUCKETS
        self._weight = 0.0
        self._sum = 0.0
        self._origin = 0.0
        """When a new observation's weight was 1."""
        self._at = 0.0
        self._kept: dict[float, float] = {}
        self._kept_until = 0.0

    def __repr__(self) -> str:
        if self.count(self._at) < LEAST:
            return f"<Latencies {self.count(self._at):.1f} seen, too few>"
        median, p99 = self.quantile(0.5, self._at), self.quantile(0.99, self._at)
        return f"<Latencies {self.count(self._at):.0f} seen, median {median or 0:.3g} s, p99 {p99 or 0:.3g} s>"

    def observe(self, seconds: float, now: float) -> None:
        """One more took so long. now: monotonic seconds."""
        weight = self._newest_weight(now)
        if not _LOWEST_S <= seconds <= _HIGHEST_S:
            seconds = min(max(seconds, _LOWEST_S), _HIGHEST_S)
        self._counts[int(log(seconds / _LOWEST_S) * _PER_LOG)] += weight
        self._weight += weight
        self._sum += weight * seconds

    def count(self, now: float) -> float:
        """How many observations there are, as they weigh now."""
        newest = self._newest_weight(now)  # first, for it may rescale
        return self._weight / newest

    def mean(self, now: float) -> float | None:
        """Their mean in seconds; None where too few are left to tell."""
        return None if self.count(now) < LEAST else self._sum / self._weight

    def quantile(self, q: float, now: float) -> float | None:
        """The latency in seconds that a part `q` (0..1) of them stays within, 5 % more or less; None where too few
        are left to tell. It may be 10 ms old."""
        if now >= self._kept_until:
            self._kept.clear()
            self._kept_until = now + _KEPT_S
        found = self._kept.get(q)
        if found is None:
            if self.count(now) < LEAST:
                return None
            found = self._kept[q] = self._find(q)
        return found

    def _find(self, q: float) -> float:
        left = q * self._weight
        last = 0
        for index, weight in enumerate(self._counts):
            if weight > 0:
                last = index
                left -= weight
                if left <= 0:
                    break
        return _MIDDLES[last]

    def _newest_weight(self, now: float) -> float:
        """What an observation made now weighs beside those at the origin."""
        if now > self._at:
            self._at = now
        age = (self._at - self._origin) / self._half_life_s
        if age > _RESCALE_AFTER:
            self._rescale(age)
            return 1.0
        return exp2(age)

    def _rescale(self, age: float) -> None:
        factor = exp2(-min(age, 1000.0))
        self._counts = [weight * factor for weight in self._counts]
        self._weight *= factor
        self._sum *= factor
        self._origin = self._at


# Steps of 5 % and 1 % balance where one of six takes longer.
_UP, _DOWN = 1.05, 0.99
_PART = 5 / 6
_FORGOTTEN_S = 10.0


class TimeNeeded:
    """What five of six answers stay within, followed step by step: known again some twenty answers after a change.

    Latencies of answers alone cannot tell it. A queue in which the first to be late is the first to be served hands
    its places to requests that have just what an answer is thought to take. Where that is too little, none of them is
    answered, no answer says so, and the pool works for nobody: eight servers that had become nine times slower answered
    none of 120 requests a second, of 18 that they could. So what was given up counts, too.
    """

    __slots__ = ("_at", "_first", "_level")

    def __init__(self) -> None:
        self._first: list[float] = []
        self._level: float | None = None
        self._at = 0.0

    def __repr__(self) -> str:
        level = f"{self._level:.3g} s" if self._level is not None else f"{len(self._first)} seen, too few"
        return f"<TimeNeeded {level}>"

    def answered(self, seconds: float, now: float) -> None:
        """An answer took so long. now: monotonic seconds."""
        self._seen(seconds, now, over=self._level is not None and seconds > self._level)

    def given_up(self, seconds: float, now: float) -> None:
        """There was no answer within so long. Who waited for less than is needed learnt nothing."""
        if self._level is None or seconds >= self._level or now - self._at > _FORGOTTEN_S:
            self._seen(seconds, now, over=True)
        else:
            self._at = max(self._at, now)

    def seconds(self, now: float) -> float | None:
        """The time needed; None: fewer than LEAST were seen since the last ten seconds without any."""
        return None if now - self._at > _FORGOTTEN_S else self._level

    def _seen(self, seconds: float, now: float, *, over: bool) -> None:
        if now - self._at > _FORGOTTEN_S:
            self._first, self._level = [], None
        self._at = max(self._at, now)
        if self._level is not None:
            self._level = max(self._level * (_UP if over else _DOWN), _LOWEST_S)
            return
        self._first.append(seconds)
        if len(self._first) == LEAST:
            self._level = sorted(self._first)[int(LEAST * _PART)]
            self._first = []
