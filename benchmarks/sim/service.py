# SPDX-License-Identifier: Apache-2.0
"""How long work takes and when it comes: distributions drawn with a seeded `random.Random`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist

from benchmarks.sim.events import Act, Events

__all__ = [
    "Draw",
    "exponential",
    "fixed",
    "lognormal_by_quantiles",
    "poisson",
    "power_tail",
    "replay",
    "truncated_normal",
    "truncated_normal_mean",
]

Draw = Callable[[random.Random], float]
"""Seconds of one piece of work."""


def fixed(seconds: float) -> Draw:
    """Always the same."""
    return lambda rng: seconds


def exponential(mean_s: float) -> Draw:
    """Memoryless, as the formulas of queueing theory want it."""
    return lambda rng: -math.log(1.0 - rng.random()) * mean_s


def truncated_normal(mu_s: float) -> Draw:
    """Normal with sigma = mu, negative values taken as 0: the query cost of Prequal's testbed."""
    return lambda rng: max(0.0, rng.gauss(mu_s, mu_s))


def truncated_normal_mean(mu_s: float) -> float:
    """The mean of `truncated_normal`: mu * (Phi(1) + phi(1))."""
    normal = NormalDist()
    return mu_s * (normal.cdf(1.0) + normal.pdf(1.0))


def lognormal_by_quantiles(p90_s: float, p99_s: float) -> Draw:
    """The lognormal with these two quantiles."""
    normal = NormalDist()
    low, high = normal.inv_cdf(0.9), normal.inv_cdf(0.99)
    sigma = math.log(p99_s / p90_s) / (high - low)
    mu = math.log(p90_s) - sigma * low
    return lambda rng: rng.lognormvariate(mu, sigma)


def power_tail(body_s: float, knots: Sequence[tuple[float, float]]) -> Draw:
    """A body up to the first knot, then straight lines on a log-log plot of P(X > t) through the knots (t, P).

    The body is uniform between `body_s` and the first knot. Beyond the last knot the last line goes on.
    """
    lines = [
        (p_from, t_from, math.log(t_to / t_from) / math.log(p_from / p_to))
        for (t_from, p_from), (t_to, p_to) in pairwise(knots)
    ]
    first_s, first_p = knots[0]

    def draw(rng: random.Random) -> float:
        beyond = 1.0 - rng.random()
        if beyond > first_p:
            return body_s + (first_s - body_s) * (1.0 - beyond) / (1.0 - first_p)
        p_from, t_from, slope = next(line for line in reversed(lines) if beyond <= line[0])
        return float(t_from * (p_from / beyond) ** slope)

    return draw


def poisson(events: Events, rate: Callable[[float], float], act: Act, rng: random.Random, *, until: float) -> None:
    """Arrivals at a rate per second that may change in time; while it is 0, looked at again every 10 ms."""

    def come() -> None:
        act()
        plan()

    def plan() -> None:
        when = events.now
        while (current := rate(when)) <= 0.0:
            when += 0.01
            if when >= until:
                return
        when -= math.log(1.0 - rng.random()) / current
        if when < until:
            events.at(when, come)

    plan()


def replay(events: Events, instants: Sequence[float], act: Act) -> None:
    """Arrivals as a trace has them, seconds from the beginning."""
    for instant in instants:
        events.at(instant, act)
