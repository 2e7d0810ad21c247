# SPDX-License-Identifier: Apache-2.0
"""The traffic class: one promise, kept in every queue a request passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["ClassTable", "StreamPromise", "TrafficClass", "queue_priority"]

# RFC 8622 section 3 (LE), RFC 4594 section 4.10 (CS1): what may starve.
_LOWER_EFFORT = {1, 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPromise:
    """What a token stream may take after its first byte, seconds; the class's deadline ends there."""

    stall_s: float = 15.0
    """Longest silence of the backend between two pieces, and longest wait for a client that does not read."""
    total_s: float | None = None
    """Until its last byte; None: as long as it takes."""
    keepalive_s: float = 5.0
    """After so long a silence an event-stream comment tells the client that somebody is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """One class as the admin defined it."""

    name: str
    rank: int
    """Place in the list of classes: 0 is served first."""
    dscp: int
    """0..63."""
    deadline_s: float
    """Until the whole reply, seconds."""
    queue_s: float
    """Longest wait in the gate, seconds."""
    priority: int = 0
    """Of its packets in queues without classes, 0..6 (SO_PRIORITY, `queue_priority`)."""
    police: int | None = None
    """Bits per second of lower classes' bytes that may ride this class's mark; None: unlimited."""
    gate_share: float = 0.0
    """Part of a pool's places, 0..1, that it gets before higher classes get more than theirs."""
    most_waiting: int = 1024
    """Requests of it that may wait in one gate."""
    most_waiting_bytes: int = 64 << 20
    """Bytes of their bodies."""
    hedge: float = 0.0
    """Hedges as a part of its requests, 0..1; 0: none."""
    sheddable: bool = False
    """Whether its work in flight may be ended for a higher class that waits."""
    stream: StreamPromise = StreamPromise()
    """What its token streams are promised behind their first byte."""


def queue_priority(rank: int, default_rank: int, dscp: int) -> int:
    """The packet priority 0..6 that keeps the classes' order where the kernel has three bands only.

    pfifo_fast sends priority 6 before 4 and 0, and those before 2 (`prio2band` in net/sched/sch_generic.c; on one
    saturated link p50 was 0.4 ms with 6 and 160 ms without). More than 6 would need CAP_NET_ADMIN (socket(7)).
    """
    if rank < default_rank:
        return 6
    if dscp in _LOWER_EFFORT and rank > default_rank:
        return 2
    return 4 if rank == default_rank else 0


class ClassTable:
    """The classes in rank order, and the one that requests get when nothing else decides."""

    def __init__(self, classes: Sequence[TrafficClass], default: TrafficClass) -> None:
        self._classes = tuple(classes)
        self._by_name = {each.name: each for each in classes}
        self.default = default

    def __iter__(self) -> Iterator[TrafficClass]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __repr__(self) -> str:
        return f"<ClassTable {' > '.join(self._by_name)}, default {self.default.name}>"

    def get(self, name: str) -> TrafficClass | None:
        """The class of this name, or None."""
        return self._by_name.get(name)
