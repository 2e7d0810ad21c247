# SPDX-License-Identifier: Apache-2.0
"""D7: reads spread over many servers, a second copy of the slowest, within a budget (Dean and Barroso, CACM 2013)."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.sim.figures import Finding, quantile
from benchmarks.sim.plot import Axis, line_plot
from benchmarks.sim.service import power_tail
from qos.budget import Budget
from qos.latency import Latencies

__all__ = ["d7"]

READS = 1000
EVERY_S = 0.1
# One read's P(X > t): 2 % beyond 10 ms, as published; one in a million beyond 1.8 s, which makes the published p99.9 of
# a thousand; between them 1 in 1,000 beyond 70 ms, so that two independent copies make the published 74 ms.
KNOTS = ((0.010, 0.02), (0.070, 1e-3), (1.8, 1e-6))
BODY_S = 0.001
LEAST_DELAY_S = 0.001
# As backends/asking/attempts.py has them: of the share, how much the delay lets through, and what the budget saves up.
PART, RESERVE = 0.9, 30
# Beside them, why: with a demand as large as the budget, many of the slowest are left alone.
OTHER_PART, OTHER_RESERVE = 1.0, 10

Hedging = Callable[[float, float], float]
"""(what a read takes, now) -> what it takes with hedging."""


def d7(seed: int, scale: float = 1.0) -> Finding:
    """Fan-outs of 1,000 reads, with and without hedges."""
    found = Finding(
        case="D7",
        title="hedging: 1,000 reads over 100 servers, all of them awaited",
        set_up="independent reads, a heavy tail fitted to the published figures; ours: delay and budget by `hedge`",
    )
    fan_outs = max(100, int(2000 * scale))
    plain = _run(fan_outs, seed, lambda seconds, _: seconds)
    fixed = _Fixed(0.010, seed)
    at_ten_ms = _run(fan_outs, seed, fixed)
    rows = {"no hedge": plain, "hedge at 10 ms": at_ten_ms}
    ours: dict[float, tuple[list[float], float]] = {}
    for share in (0.02, 0.05):
        hedging = _Ours(share, seed)
        ours[share] = (_run(fan_outs, seed, hedging), hedging.sent / (fan_outs * READS))
        rows[f"ours, hedge: {share:.0%}"] = ours[share][0]
    found.tell("no hedge: p99.9", "1,800 ms", _ms(plain))
    found.tell("hedge at 10 ms: p99.9", "74 ms", _ms(at_ten_ms))
    found.tell("hedge at 10 ms: extra requests", "2 %", f"{fixed.sent / (fan_outs * READS):.2%}")
    tail, extra = ours[0.02]
    gain = quantile(plain, 0.999) / quantile(tail, 0.999)
    found.judge("ours, hedge 2 %: p99.9", "74 ms (24x)", f"{_ms(tail)} ({gain:.0f}x)", ">= 10x less", gain >= 10)
    found.judge("ours, hedge 2 %: extra requests", "2 %", f"{extra:.2%}", "<= 2 %", extra <= 0.0201)
    tail, extra = ours[0.05]
    found.tell("ours, hedge 5 %: p99.9", "-", _ms(tail))
    found.judge("ours, hedge 5 %: extra requests", "<= 5 %", f"{extra:.2%}", "<= 5 %", extra <= 0.0501)
    other = _Ours(0.02, seed, part=OTHER_PART, reserve=OTHER_RESERVE)
    tail = _run(fan_outs, seed, other)
    what = f"hedge 2 %, delay at 1 - {OTHER_PART:g} * hedge, reserve {OTHER_RESERVE}"
    found.tell(what, "-", f"{_ms(tail)}, {other.sent / (fan_outs * READS):.2%} extra")
    found.plots["hedging"] = line_plot(
        "Latency of 1,000 reads",
        Axis("part of the fan-outs within", least=0.0),
        Axis("ms", logarithmic=True),
        {name: _distribution(latencies) for name, latencies in rows.items()},
        dots=False,
    )
    return found


def _ms(latencies: list[float]) -> str:
    return f"{quantile(latencies, 0.999) * 1e3:,.0f} ms"


def _distribution(latencies: list[float]) -> list[tuple[float, float]]:
    return [(q / 1000, quantile(latencies, q / 1000) * 1e3) for q in (*range(1, 1000, 9), 995, 997, 998, 999)]


def _run(fan_outs: int, seed: int, hedging: Hedging) -> list[float]:
    rng, draw = random.Random(seed), power_tail(BODY_S, KNOTS)
    return [max(hedging(draw(rng), index * EVERY_S) for _ in range(READS)) for index in range(fan_outs)]


class _Fixed:
    """A second copy of whatever is not back after a fixed time."""

    def __init__(self, delay_s: float, seed: int) -> None:
        self._delay_s = delay_s
        self._rng = random.Random(seed + 1)
        self._draw = power_tail(BODY_S, KNOTS)
        self.sent = 0

    def __call__(self, seconds: float, now: float) -> float:
        if seconds <= self._delay_s:
            return seconds
        self.sent += 1
        return min(seconds, self._delay_s + self._draw(self._rng))


class _Ours:
    """As backends/asking/attempts.py: the delay is a quantile of the class's own latencies, the budget is the share."""

    def __init__(self, share: float, seed: int, *, part: float = PART, reserve: int = RESERVE) -> None:
        self._quantile = 1 - part * share
        self._rng = random.Random(seed + 1)
        self._draw = power_tail(BODY_S, KNOTS)
        self._latencies = Latencies()
        self._budget = Budget(share, reserve)
        self.sent = 0

    def __call__(self, seconds: float, now: float) -> float:
        self._budget.earn()
        delay_s = self._latencies.quantile(self._quantile, now)
        taken = seconds
        if delay_s is not None and seconds > max(delay_s, LEAST_DELAY_S) and self._budget.spend():
            self.sent += 1
            taken = min(seconds, delay_s + self._draw(self._rng))
        self._latencies.observe(taken, now)
        return taken
