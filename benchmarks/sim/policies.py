# SPDX-License-Identifier: Apache-2.0
"""The peers' rules, each for one client that sends at once and lets the server queue: what ours is judged beside.

A rule gets the servers for their number, and for what a server tells when it is asked; what it learns of its own
requests it learns by `sent` and `finished`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import exp
from typing import Protocol

from benchmarks.sim.events import Events
from benchmarks.sim.servers import Server

__all__ = [
    "Clients",
    "LeastInFlight",
    "PeakEwma",
    "PolledTwoChoices",
    "Random",
    "RoundRobin",
    "Rule",
    "TwoChoices",
    "WeightedRoundRobin",
]


class Rule(Protocol):
    """Which server gets the next request of one client."""

    def pick(self, now: float) -> int:
        """Its index; the request is sent there at once."""
        ...

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """A request to it has ended."""
        ...


class Random:
    """Any."""

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._count = len(servers)
        self._rng = rng

    def pick(self, now: float) -> int:
        """Any one, each as likely."""
        return int(self._rng.random() * self._count)

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """Learns nothing."""


class RoundRobin:
    """One after the other, from a random first one."""

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._count = len(servers)
        self._turn = rng.randrange(self._count)

    def pick(self, now: float) -> int:
        """The next."""
        self._turn = (self._turn + 1) % self._count
        return self._turn

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """Learns nothing."""


class LeastInFlight:
    """The fewest of the client's own requests in flight; among equals any."""

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._in_flight = [0] * len(servers)
        self._rng = rng

    def pick(self, now: float) -> int:
        """One of the least."""
        least = min(self._in_flight)
        index = self._rng.choice([each for each, count in enumerate(self._in_flight) if count == least])
        self._in_flight[index] += 1
        return index

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """One fewer."""
        self._in_flight[index] -= 1


class TwoChoices:
    """The shorter queue of two drawn at random, as the servers have it at this instant."""

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._servers = servers
        self._rng = rng

    def pick(self, now: float) -> int:
        """The shorter one."""
        count = len(self._servers)
        one = int(self._rng.random() * count)
        other = int(self._rng.random() * (count - 1))
        other += other >= one
        return one if self._servers[one].in_flight <= self._servers[other].in_flight else other

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """Learns nothing."""


class PolledTwoChoices:
    """YARP's: two drawn at random, by what all servers said when last polled."""

    EVERY_S = 0.5

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._servers = servers
        self._rng = rng
        self._seen = [0] * len(servers)
        self._next_poll = -rng.random() * self.EVERY_S

    def pick(self, now: float) -> int:
        """The one that was less busy then."""
        while now >= self._next_poll:
            self._seen = [server.in_flight for server in self._servers]
            self._next_poll += self.EVERY_S
        one, other = self._rng.sample(range(len(self._servers)), 2)
        return one if self._seen[one] <= self._seen[other] else other

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """Learns nothing."""


class PeakEwma:
    """Finagle's: the lowest latency that resets on a peak and decays, times one more than what is in flight.

    All servers are looked at. A failure's latency counts as any other, which is the sinkhole (linkerd2 #11669).
    """

    DECAY_S = 10.0

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._in_flight = [0] * len(servers)
        self._latency = [0.0] * len(servers)
        self._stamp = [0.0] * len(servers)
        self._rng = rng

    def pick(self, now: float) -> int:
        """The least loaded; one that was never asked first."""
        index = min(range(len(self._in_flight)), key=lambda each: (self._load(each), self._rng.random()))
        self._in_flight[index] += 1
        return index

    def _load(self, index: int) -> float:
        return self._latency[index] * (self._in_flight[index] + 1)

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """Up at once, down by decay."""
        self._in_flight[index] -= 1
        if latency_s > self._latency[index]:
            self._latency[index] = latency_s
        else:
            weight = exp(-(now - self._stamp[index]) / self.DECAY_S)
            self._latency[index] = self._latency[index] * weight + latency_s * (1.0 - weight)
        self._stamp[index] = now


class WeightedRoundRobin:
    """Weights by requests answered over cores used, looked at every 2 s: Prequal's WRR without its error term."""

    EVERY_S = 2.0
    SMOOTHING = 0.2

    def __init__(self, servers: Sequence[Server], rng: random.Random, used: Callable[[int], tuple[int, float]]) -> None:
        """used: (requests answered, core seconds spent) of a server since the beginning."""
        self._used = used
        self._before = [used(index) for index in range(len(servers))]
        self._weights = [1.0] * len(servers)
        self._credit = [rng.random() for _ in servers]
        self._next = self.EVERY_S * rng.random()

    def pick(self, now: float) -> int:
        """Smooth weighted round robin, as nginx does it."""
        if now >= self._next:
            self._next = now + self.EVERY_S
            self._weigh()
        credit = self._credit = [have + weight for have, weight in zip(self._credit, self._weights, strict=True)]
        index = credit.index(max(credit))
        credit[index] -= sum(self._weights)
        return index

    def _weigh(self) -> None:
        before, self._before = self._before, [self._used(index) for index in range(len(self._before))]
        gone = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(self._before, before, strict=True)]
        answered, spent = sum(each for each, _ in gone), sum(each for _, each in gone)
        for index, (its_answered, its_spent) in enumerate(gone):
            if its_spent > 0.0 and answered:
                weight = its_answered / its_spent * spent / answered
                self._weights[index] += self.SMOOTHING * (weight - self._weights[index])

    def finished(self, index: int, latency_s: float, failed: bool, now: float) -> None:
        """Learns by looking only."""


class Clients:
    """Clients that each follow their own copy of a rule and take turns by chance."""

    def __init__(self, events: Events, servers: Sequence[Server], rules: Sequence[Rule], rng: random.Random) -> None:
        self._events = events
        self._servers = servers
        self._rules = rules
        self._rng = rng
        self.sent = [0] * len(servers)

    def send(self, seconds: Sequence[float], ended: Callable[[float, int, bool], None]) -> None:
        """One request of one of them; seconds: its work, by server where they differ in speed.

        ended: called with its latency, the server's index and whether it failed.
        """
        rules = self._rules
        rule = rules[int(self._rng.random() * len(rules))] if len(rules) > 1 else rules[0]
        began = self._events.now
        index = rule.pick(began)
        self.sent[index] += 1

        def done() -> None:
            now = self._events.now
            rule.finished(index, now - began, work.failed, now)
            ended(now - began, index, work.failed)

        work = self._servers[index].begin(seconds[index] if len(seconds) > 1 else seconds[0], done)
