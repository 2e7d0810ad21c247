# SPDX-License-Identifier: Apache-2.0
"""The gateway's hot/cold picker with another cost for what is in flight: what the cost it has is judged beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

from backends.choosing.picker import Q_RIF, Candidate, Context, Picker

__all__ = ["COSTS", "Cost", "by_cost"]

Cost = Callable[[float, int], float]
"""(predicted seconds, in flight there) -> by what it is compared with the other cold ones."""

COSTS: dict[str, Cost] = {
    "prediction alone": lambda expected_s, in_flight: expected_s,
    "prediction x (1 + in flight)": lambda expected_s, in_flight: expected_s * (1 + in_flight),
}
"""Prequal's and Finagle's."""


def by_cost(cost: Cost) -> Picker:
    """As `least_latency`, for endpoints that have as many places each and do not fail."""

    def pick(candidates: Sequence[Candidate], context: Context) -> int | None:
        now = context.now
        hot = sorted(each.in_flight for each in candidates)[ceil(Q_RIF * len(candidates)) - 1]

        def order(index: int) -> tuple[int, float]:
            each = candidates[index]
            expected_s = each.expected_s(now)
            if expected_s is None and each.in_flight == 0:
                return 0, 0.0
            if expected_s is None or each.in_flight > hot:
                return 2, each.in_flight
            return 1, cost(expected_s, each.in_flight)

        # From its turn on, so that among equals each comes as often as the others.
        count = len(candidates)
        turns = ((context.turn + step) % count for step in range(count))
        return min((index for index in turns if candidates[index].has_room(now)), key=order, default=None)

    return pick
