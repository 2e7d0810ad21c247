# SPDX-License-Identifier: Apache-2.0
"""What a metric is before Prometheus' library knows of it: a name, labels, and plain numbers or a histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["BOUNDS", "Family", "Histogram", "Seconds"]

# 100 us is a datagram to an idle model, 60 s a long batch; three steps a decade tell p50 from p99.
BOUNDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `_total`, and its samples."""

    name: str
    help: str
    labels: Sequence[str]
    counts: bool = False
    """Whether it only grows."""
    samples: list[tuple[Sequence[str], float]] = field(default_factory=list)


class Seconds:
    """One histogram's series: how many took how long."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"<Seconds {sum(self.counts)} observed, {self.sum:g} s>"

    def observe(self, seconds: float) -> None:
        """One more took so long."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


@dataclass(frozen=True, slots=True)
class Histogram:
    """One metric of durations, and its series."""

    name: str
    help: str
    labels: Sequence[str]
    samples: list[tuple[Sequence[str], Seconds]] = field(default_factory=list)
