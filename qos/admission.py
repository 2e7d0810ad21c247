# SPDX-License-Identifier: Apache-2.0
"""Who may still wait, who makes room, when to come back: what cannot be answered in time is refused at once.

Plain functions over seconds and counts; proxy/walk/gate.py and the simulator act on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

__all__ = ["Held", "latest_start", "retry_after_s", "to_evict", "too_late"]

# A refusal sends nobody away for longer or shorter than this, whatever the queue looks like.
_RETRY_LEAST_S = 0.01
_RETRY_MOST_S = 5.0


class Held(Protocol):
    """A place that a sheddable request holds."""

    @property
    def rank(self) -> int: ...
    @property
    def evicted(self) -> bool:
        """Whether it was told to go already."""
        ...


Place = TypeVar("Place", bound=Held)


def latest_start(deadline: float, *, expected_s: float | None, rtt_s: float | None) -> float:
    """The instant after which a dispatch would probably be answered too late, monotonic seconds.

    expected_s: what an answer to this class must be given at this pool: its median for a place that nobody waits for,
    else what qos/latency.py's TimeNeeded tells; None where too few were measured: then only the way back counts.
    rtt_s: the client's round trip: its clock began half of it before ours, and the answer travels the other half
    (notes on Sponge and Jellyfish: the network spends a part of the deadline).
    """
    return deadline - (expected_s or 0.0) - (rtt_s or 0.0)


def too_late(now: float, latest: float, *, class_in_flight: int) -> bool:
    """Whether a request is refused rather than served late.

    While nothing of its class is in flight one goes all the same: what was measured may be over, and nobody would
    ever measure again if everybody were refused (compare llm-d-router #2408, where old readings shut the door).
    """
    return now > latest and class_in_flight > 0


def to_evict(waiting: Iterable[int], held: Iterable[Place], *, leaving_elsewhere: int = 0) -> list[Place]:
    """The sheddable work that ends now. waiting: ranks of those that found no place, one each; held: oldest first.

    One for each that waits and outranks it, less those already on their way out; of the lowest class the newest first,
    for it has spent least.
    leaving_elsewhere: how many are on their way out that are not among these.
    """
    ranks = sorted(waiting)
    candidates = sorted(enumerate(held), key=lambda each: (each[1].rank, each[0]))
    leaving = leaving_elsewhere + sum(1 for _, place in candidates if place.evicted)
    chosen = []
    for rank in ranks[leaving:]:
        candidates = [each for each in candidates if not each[1].evicted]
        if not candidates or candidates[-1][1].rank <= rank:
            break
        chosen.append(candidates.pop()[1])
    return chosen


def retry_after_s(ahead: int, places: int, expected_s: float | None, *, longest_s: float) -> float:
    """When asking again may find a place, seconds: when those that wait will have been served.

    ahead: how many are served before a newcomer; longest_s: the wait of its class, within which all of them are served
    or gone, whatever was measured.
    """
    drained = longest_s if expected_s is None else (ahead + 1) * expected_s / max(1, places)
    return min(max(min(drained, longest_s), _RETRY_LEAST_S), _RETRY_MOST_S)
