# SPDX-License-Identifier: Apache-2.0
"""Neighbours on the servers' machines that take cores and give them back: moved in turns, or each by chance."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.sim.events import Events
from benchmarks.sim.servers import SharedServer

__all__ = ["Level", "hot_sets", "jump", "move"]


@dataclass(frozen=True, slots=True)
class Level:
    """How many cores antagonists leave, how often as a part of the time, and for how long on average, seconds."""

    cores: float
    part: float
    stays_s: float


def hot_sets(count: int, states: int, rng: random.Random) -> list[frozenset[int]]:
    """So many states, each with two or three of the servers hot, and none hot in two states that follow one another."""
    sets: list[frozenset[int]] = []
    while len(sets) < states:
        hot = frozenset(rng.sample(range(count), rng.choice((2, 3))))
        if not sets or not hot & sets[-1]:
            sets.append(hot)
    return sets


def move(
    events: Events,
    servers: Sequence[SharedServer],
    sets: Sequence[frozenset[int]],
    *,
    every_s: float,
    cold: float,
    hot: float,
) -> None:
    """The next set is hot after every `every_s`; cold and hot: cores that a server has then."""

    def to(state: int) -> None:
        for index, server in enumerate(servers):
            server.cores = hot if index in sets[state] else cold
        events.after(every_s, lambda: to((state + 1) % len(sets)))

    to(0)


def jump(events: Events, server: SharedServer, levels: Sequence[Level], rng: random.Random, *, until: float) -> None:
    """A level by chance, so that each holds its part of the time; exponential stays."""
    weights = [level.part / level.stays_s for level in levels]

    def to() -> None:
        level = rng.choices(levels, weights)[0]
        server.cores = level.cores
        stays_s = rng.expovariate(1 / level.stays_s)
        if events.now + stays_s < until:
            events.after(stays_s, to)

    to()
