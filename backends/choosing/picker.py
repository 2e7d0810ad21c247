# SPDX-License-Identifier: Apache-2.0
"""Which of a pool's endpoints gets the next request: plain functions over what is known of them.

All take the endpoints that may be asked, in a fixed order, and a context. From its `turn` on they look around once, so
that among equals each comes as often as the others. Endpoints to be avoided come after all others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import NamedTuple, Protocol

__all__ = ["PICKERS", "Candidate", "Context", "Picker", "least_in_flight", "least_latency", "round_robin"]

Q_RIF = 0.84
"""Endpoints with more in flight than this part of them has are hot (Prequal, NSDI 2024: 2^-0.25)."""


class Candidate(Protocol):
    """What picking needs to know of an endpoint."""

    @property
    def name(self) -> str:
        """Unique in its pool."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests it is answering now that were sent from here, so that their answers will tell of it."""
        ...

    @property
    def busy(self) -> int:
        """Requests it is answering now, of all workers."""
        ...

    @property
    def slots(self) -> int:
        """Requests that it may have in flight, at least 1."""
        ...

    def has_room(self, now: float) -> bool:
        """Whether it can take one more request now."""
        ...

    def expected_s(self, now: float) -> float | None:
        """What an answer will take, seconds; None: nothing is known."""
        ...

    def penalised(self, now: float) -> bool:
        """Whether it failed lately."""
        ...


class Context(NamedTuple):
    """What picking depends on besides the endpoints."""

    now: float
    """Monotonic seconds."""
    rng: random.Random
    turn: int = 0
    """The index after the last one picked."""
    waiting: int = 0
    """Requests that wait for a place, the one to be placed included."""
    avoid: frozenset[str] = frozenset()
    """Names of those that others go before."""


Picker = Callable[[Sequence[Candidate], Context], int | None]
"""The index of the picked one, None when none has room."""


def round_robin(candidates: Sequence[Candidate], context: Context) -> int | None:
    """The next with room."""
    with_room = _with_room(candidates, context)
    return with_room[0] if with_room else None


def least_in_flight(candidates: Sequence[Candidate], context: Context) -> int | None:
    """The one with the fewest requests in flight."""
    return min(_with_room(candidates, context), key=lambda index: candidates[index].busy, default=None)


def least_latency(candidates: Sequence[Candidate], context: Context) -> int | None:
    """The one that will answer first, of those that have not much more to do than the others.

    Prequal's hot/cold rule (NSDI 2024) over all endpoints: of the cold the one with the lowest prediction, of the hot
    the one with the fewest in flight in proportion to its places. One of which nothing is known is tried, by one
    request at a time. One that failed lately comes last.

    The prediction is what answers took, and says nothing of those sent since. So they count as well, by their part of
    what makes an endpoint hot: one that is just not hot yet is taken to need twice as long. Alone the prediction fills
    one endpoint after the other until it is hot (case D5b in benchmarks/sim: p99 554 ms, with the factor 300, fewest in
    flight 430). Counted once for each in flight, as Finagle does, they take fast endpoints with idle cores for slower
    than slow ones (case D2 at 70 %: p99 918 ms, with the factor 814).
    """
    now = context.now
    with_room = _with_room(candidates, context)
    if len(with_room) < 2:
        return with_room[0] if with_room else None
    slots = [each.slots for each in candidates]
    loads = [each.busy / most for each, most in zip(candidates, slots, strict=True)]
    hot = sorted(loads)[ceil(Q_RIF * len(loads)) - 1]
    best: int | None = None
    least_s = inf
    others: list[tuple[int, float, int]] = []
    for place, index in enumerate(with_room):
        each, load = candidates[index], loads[index]
        expected_s = each.expected_s(now)
        if expected_s is None:
            if each.in_flight == 0:
                return index
            others.append((_HOT, load, place))
        elif each.penalised(now):
            others.append((_PENALISED, expected_s, place))
        elif load > hot:
            others.append((_HOT, load, place))
        elif (cost_s := expected_s * (1 + (load / hot if hot else 0.0))) < least_s:
            best, least_s = index, cost_s
    return with_room[min(others)[2]] if best is None else best


_HOT, _PENALISED = range(2)


def _with_room(candidates: Sequence[Candidate], context: Context) -> list[int]:
    """The indexes of those with room, from `turn` on once around; those to be avoided only if there are no others."""
    now, turn, avoid = context.now, context.turn, context.avoid
    indexes = range(len(candidates))
    found = [index for index in (*indexes[turn:], *indexes[:turn]) if candidates[index].has_room(now)]
    if avoid:
        return [index for index in found if candidates[index].name not in avoid] or found
    return found


PICKERS: dict[str, Picker] = {
    "least_latency": least_latency,
    "round_robin": round_robin,
    "least_in_flight": least_in_flight,
}
"""By the name that the config gives them."""
