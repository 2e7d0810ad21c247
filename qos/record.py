# SPDX-License-Identifier: Apache-2.0
"""What is kept of finished requests to judge promises by: exact counts, sampled timelines. Pure, and plain data.

Several workers' records of one promise are the slices of all of them: each sample says for how many requests it stands.
Their clocks are one, the machine's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from qos.timeline import Timeline

__all__ = ["MOST_SAMPLES", "Record", "Sample", "Sampled", "Slice", "merged", "thinned"]

MOST_SAMPLES = 64
"""A slice's; ten of them tell a p99."""


@dataclass(slots=True)
class Sample:
    """One request."""

    timeline: Timeline
    streaming: bool
    reason: str


@dataclass(slots=True)
class Sampled:
    """How many there were, and every stride-th of them."""

    count: int = 0
    stride: int = 1
    samples: list[Sample] = field(default_factory=list)

    def keep(self, sample: Sample) -> None:
        """One more that is to be kept; where there are too many, every second goes."""
        self.samples.append(sample)
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[::2]
            self.stride *= 2


@dataclass(slots=True)
class Slice:
    """Some seconds of one promise."""

    ends: float
    """Monotonic seconds."""
    kept: Sampled = field(default_factory=Sampled)
    missed: Sampled = field(default_factory=Sampled)
    reasons: dict[str, int] = field(default_factory=dict)
    """Requests without an answer in time."""


@dataclass(frozen=True, slots=True)
class Record:
    """One class in one pool, over a window."""

    traffic_class: str
    rank: int
    deadline_s: float
    pool: str
    slices: list[Slice]


def merged(records: Iterable[Record]) -> list[Record]:
    """One for each class and pool, by rank and pool. Of a class that a reload has changed, the first's words count."""
    found: dict[tuple[str, str], Record] = {}
    for each in records:
        key = (each.traffic_class, each.pool)
        known = found.get(key)
        found[key] = each if known is None else replace(known, slices=[*known.slices, *each.slices])
    return sorted(found.values(), key=lambda each: (each.rank, each.traffic_class, each.pool))


def thinned(record: Record, most: int) -> Record:
    """The same with at most so many samples of each slice's kinds, of which each stands for more requests."""
    return replace(
        record,
        slices=[
            replace(each, kept=_thinned(each.kept, most), missed=_thinned(each.missed, most)) for each in record.slices
        ],
    )


def _thinned(sampled: Sampled, most: int) -> Sampled:
    samples, stride = sampled.samples, sampled.stride
    while len(samples) > most:
        samples, stride = samples[1::2], stride * 2
    return Sampled(sampled.count, stride, samples)
