# SPDX-License-Identifier: Apache-2.0
"""What a metric is before Prometheus' library knows of it: a name, labels, and plain numbers or a histogram.

`Exported` is the same as data that crosses from one process to another, for those that are seen as one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

__all__ = ["BOUNDS", "Across", "Exported", "Family", "Histogram", "Seconds", "exported"]

Across = Literal["sum", "max", "min", "mean"]
"""What several workers' values of one gauge make together; what only grows is always summed."""

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
    across: Across = "sum"


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


class Exported(msgspec.Struct, array_like=True, frozen=True):
    """One metric as plain data."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    across: Across
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], tuple[float, ...]]]
    """Label values, and the number; of a histogram the count of each bucket and the sum."""
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets, without the last, which has none."""


def exported(families: Iterable[Family], histograms: Iterable[Histogram]) -> Iterator[Exported]:
    """All of them, as they stand."""
    for each in families:
        kind: Literal["counter", "gauge"] = "counter" if each.counts else "gauge"
        # Of a truth value a number: 1 or 0.
        samples = [(tuple(labels), (+value,)) for labels, value in each.samples]
        yield Exported(each.name, each.help, kind, each.across, tuple(each.labels), samples)
    for one in histograms:
        series = [(tuple(labels), (*seconds.counts, seconds.sum)) for labels, seconds in one.samples]
        yield Exported(one.name, one.help, "histogram", "sum", tuple(one.labels), series, BOUNDS)
