# SPDX-License-Identifier: Apache-2.0
"""Which of a pool's endpoints gets the next request. Plain functions over counts.

Both take the endpoints in their fixed order and `turn`, the index after the last one picked. From there they look
around once, so that among equals each comes as often as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["PICKERS", "Candidate", "Picker", "least_in_flight", "round_robin"]


class Candidate(Protocol):
    """What picking needs to know of an endpoint."""

    @property
    def free(self) -> bool:
        """Whether it can take one more request now."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests it is answering now."""
        ...


Picker = Callable[[Sequence[Candidate], int], int | None]
"""(endpoints, turn) -> the index of the picked one, None when none is free."""


def round_robin(endpoints: Sequence[Candidate], turn: int) -> int | None:
    """The next free one."""
    for step in range(len(endpoints)):
        index = (turn + step) % len(endpoints)
        if endpoints[index].free:
            return index
    return None


def least_in_flight(endpoints: Sequence[Candidate], turn: int) -> int | None:
    """The free one with the fewest requests in flight; among equals the next."""
    best = None
    for step in range(len(endpoints)):
        index = (turn + step) % len(endpoints)
        each = endpoints[index]
        if each.free and (best is None or each.in_flight < endpoints[best].in_flight):
            best = index
    return best


PICKERS: dict[str, Picker] = {"round_robin": round_robin, "least_in_flight": least_in_flight}
"""By the name that the config gives them."""
