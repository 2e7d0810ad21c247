# SPDX-License-Identifier: Apache-2.0
"""Rules that ask servers by probes, as published with Prequal (NSDI'24): hot/cold lexicographic, and C3 over the same.

A probe tells requests in flight and a latency: the median of recent ones begun at about as many in flight. Probes sent
with one request serve the following ones; their way takes no time here, which flatters these rules a little.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low

from benchmarks.sim.servers import Server

__all__ = ["Probe", "Probing", "Readings", "hot_cold", "probed_c3"]

Q_RIF = 2**-0.25
POOL_SIZE = 16
PROBES_PER_QUERY = 3
MOST_AGE_S = 1.0
LEAST_POOL = 2
# max(1, (1 + delta) / ((1 - m/n) * r_probe - r_remove)) with delta 1 and n = 100.
REUSE = 1.32
# Before anything was answered: Linkerd's default round trip. With 0 such a server would draw everything.
_UNKNOWN_S = 0.03
_RECENT = 9
# Whose requests an own one stands for, in C3.
_CLIENTS = 100
# One request in six costs nothing: a median of fewer would be a lie.
_LEAST = 5
_ANY = -1
_REMEMBERED = 128


class Readings:
    """What the servers would answer to a probe; shared by all clients."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._recent: list[dict[int, deque[float]]] = [{} for _ in servers]
        self._medians: list[dict[int, float]] = [{} for _ in servers]

    def __len__(self) -> int:
        return len(self._servers)

    def in_flight(self, index: int) -> int:
        """At this instant."""
        return self._servers[index].in_flight

    def observe(self, index: int, in_flight: int, latency_s: float) -> None:
        """A request that began as the so-many-th in flight took so long."""
        for about in (_about(in_flight), _ANY):
            recent = self._recent[index].setdefault(about, deque(maxlen=_RECENT))
            recent.append(latency_s)
            if len(recent) >= _LEAST:
                self._medians[index][about] = median_low(recent)

    def latency_s(self, index: int, in_flight: int) -> float:
        """The median with about as many in flight; where too few were seen, with any."""
        medians = self._medians[index]
        about = _about(in_flight)
        return medians[about] if about in medians else medians.get(_ANY, _UNKNOWN_S)


def _about(in_flight: int) -> int:
    """1, 2, 3, then two to a doubling."""
    if in_flight < 4:
        return in_flight
    doublings = in_flight.bit_length()
    return 2 * doublings + (in_flight >> (doublings - 2) & 1)


@dataclass(slots=True)
class Probe:
    """What a server said."""

    index: int
    in_flight: int
    latency_s: float
    at: float
    uses: int
    own: int = 0
    """Of the client's own requests there."""


Best = Callable[[list[Probe], int], Probe]
"""(probes held, theta) -> the chosen, or the one to be thrown away."""


class Probing:
    """A client that holds probes and follows a rule among them; `best` picks, `worst` is thrown away now and then."""

    def __init__(self, readings: Readings, rng: random.Random, best: Best, worst: Best) -> None:
        self._readings = readings
        self._rng = rng
        self._best = best
        self._worst = worst
        self._pool: list[Probe] = []
        self._seen: deque[int] = deque(maxlen=_REMEMBERED)
        self._remove_worst = False
        self._began: dict[int, deque[int]] = {}

    def pick(self, now: float) -> int:
        """By the rule among the probes held; any server while there are too few."""
        pool = self._pool = [probe for probe in self._pool if now - probe.at <= MOST_AGE_S and probe.uses > 0]
        if len(pool) < LEAST_POOL:
            index = self._rng.randrange(len(self._readings))
        else:
            theta = self._theta()
            for each in pool:
                each.own = len(self._began.get(each.index, ()))
            probe = self._best(pool, theta)
            probe.uses -= 1
            probe.in_flight += 1
            index = probe.index
            self._remove_one(theta)
        self._began.setdefault(index, deque()).append(self._readings.in_flight(index) + 1)
        self._probe(now)
        return index

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """The server remembers it with what was in flight when it began."""
        self._readings.observe(index, self._began[index].popleft(), latency_s)

    def _probe(self, now: float) -> None:
        for _ in range(PROBES_PER_QUERY):
            index = self._rng.randrange(len(self._readings))
            in_flight = self._readings.in_flight(index)
            uses = int(REUSE) + (self._rng.random() < REUSE % 1.0)
            self._pool.append(Probe(index, in_flight, self._readings.latency_s(index, in_flight), now, uses))
            self._seen.append(in_flight)
        del self._pool[:-POOL_SIZE]

    def _remove_one(self, theta: int) -> None:
        """The oldest and the worst in turns."""
        self._remove_worst = not self._remove_worst
        if self._pool:
            self._pool.remove(self._worst(self._pool, theta) if self._remove_worst else self._pool[0])

    def _theta(self) -> int:
        """Beyond so many in flight a server is hot."""
        ordered = sorted(self._seen)
        return ordered[min(len(ordered) - 1, int(Q_RIF * len(ordered)))] if ordered else 0


def hot_cold(readings: Readings, rng: random.Random) -> Probing:
    """The lowest latency among the cold; all hot: the fewest in flight. Thrown away: the hottest, else the slowest."""
    return Probing(readings, rng, _coldest, _hottest)


def probed_c3(readings: Readings, rng: random.Random) -> Probing:
    """C3's score: the latency times the cube of the queue that a request will find, its own once for each client."""
    return Probing(readings, rng, lambda pool, _: min(pool, key=_score), lambda pool, _: max(pool, key=_score))


def _coldest(pool: list[Probe], theta: int) -> Probe:
    cold = [probe for probe in pool if probe.in_flight <= theta]
    if cold:
        return min(cold, key=lambda probe: probe.latency_s)
    return min(pool, key=lambda probe: probe.in_flight)


def _hottest(pool: list[Probe], theta: int) -> Probe:
    hot = [probe for probe in pool if probe.in_flight > theta]
    if hot:
        return max(hot, key=lambda probe: probe.in_flight)
    return max(pool, key=lambda probe: probe.latency_s)


def _score(probe: Probe) -> float:
    return probe.latency_s * (1 + (1 + _CLIENTS * probe.own + probe.in_flight) ** 3)
