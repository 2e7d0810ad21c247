# SPDX-License-Identifier: Apache-2.0
"""Which zone's endpoints a request may go to: the nearest, unless a later one will have answered sooner."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol, TypeVar

__all__ = ["Zoned", "nearest_first"]


class Zoned(Protocol):
    """What choosing a zone needs to know of an endpoint."""

    @property
    def zone(self) -> str | None:
        """As the pool's `zones` name it."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests it is answering now that were sent from here, so that their answers will tell of it."""
        ...

    @property
    def busy(self) -> int:
        """Requests it is answering now, of all workers."""
        ...

    def room(self, now: float) -> int:
        """Requests that it may have in flight now."""
        ...

    def expected_s(self, now: float) -> float | None:
        """What an answer will take, measured from here, so that the way there is in it; None: nothing is known."""
        ...

    def usual_s(self, now: float) -> float | None:
        """The same on average, and not faded while nobody asked."""
        ...

    def forgotten(self, now: float) -> bool:
        """Whether nobody asks it, and what is known of it is old."""
        ...


_Endpoint = TypeVar("_Endpoint", bound=Zoned)


def nearest_first(endpoints: Sequence[_Endpoint], zones: Sequence[str], *, now: float, waiting: int) -> list[_Endpoint]:
    """The endpoints of one zone, to pick among; [] means to wait for a place in the nearest.

    endpoints: those that may be asked; zones: names, nearest first, any other zone and none come last; waiting:
    requests that wait for a place, this one included.

    A zone costs what it usually takes: the peaks that tell endpoints apart would tell of chance here. One without a
    place free costs the wait for one besides: its queue in front, served as fast as it answers. Nobody's endpoints are
    no zone. A farther zone is chosen only with a place free now. While a nearer one has one too, it must be known to be
    faster; where the nearer are full, a farther one of which nothing is known, or not lately, is worth a try. And so is
    a nearer endpoint that was forgotten for a farther zone: after an outage there nobody would ever go back.
    """
    order = {name: place for place, name in enumerate(zones)}
    groups: dict[int, list[_Endpoint]] = {}
    for each in endpoints:
        groups.setdefault(order.get(each.zone or "", len(zones)), []).append(each)
    chosen: list[_Endpoint] = []
    least_s: float | None = None
    for place in sorted(groups):
        group = groups[place]
        free = [each for each in group if each.busy < each.room(now)]
        if least_s is None or (free and _is_sooner(free, least_s, now, full=not chosen)):
            forgotten = [each for each in chosen if each.forgotten(now)]
            if forgotten:
                return forgotten
            chosen, least_s = free, _cost_s(group, free, now, waiting)
    return chosen


def _cost_s(group: Sequence[Zoned], free: Sequence[Zoned], now: float, waiting: int) -> float:
    """Until an answer from there, seconds; 0.0 where nobody there has answered yet: it is to be tried."""
    answer_s = min((usual_s for each in free or group if (usual_s := each.usual_s(now)) is not None), default=0.0)
    if free:
        return answer_s
    return answer_s + max(1, waiting) / sum(each.room(now) for each in group) * answer_s


def _is_sooner(free: Sequence[Zoned], least_s: float, now: float, *, full: bool) -> bool:
    """Whether one of a farther zone's free endpoints answers sooner; `full`: the nearer zones have no place free."""
    if full and all(each.expected_s(now) is None and each.in_flight == 0 for each in free):
        return True  # nothing is known, and nothing is on its way to be known
    told = [each.usual_s(now) for each in free]
    if full:
        told += [each.expected_s(now) for each in free]
    return min((each for each in told if each is not None), default=inf) < least_s
