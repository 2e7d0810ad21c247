# SPDX-License-Identifier: Apache-2.0
"""D14: a limit that finds the number of workers itself (envoy #7789), and again after an outage (#38338)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Act, Events
from benchmarks.sim.figures import Finding, mean, quantile
from benchmarks.sim.gateway import Asked, Gateway
from benchmarks.sim.plot import Axis, line_plot
from benchmarks.sim.policies import Clients, RoundRobin
from benchmarks.sim.servers import FailingServer, Server, SlotServer, Work
from benchmarks.sim.service import lognormal_by_quantiles, poisson

__all__ = ["d14"]

WORKERS = 8
SERVICE = lognormal_by_quantiles(0.05, 0.15)
# Of the lognormal with these quantiles: exp(mu + sigma^2 / 2).
SERVICE_MEAN_S = 0.02261
CAPACITY = WORKERS / SERVICE_MEAN_S
RAMP_S = 160.0
TOP = 1.5
TIMEOUT_S = 1.0
OUTAGE = (200.0, 210.0)
RECOVERY_S = 10.0
END_S = 250.0
BOUNDS = (1, 200)


@dataclass(slots=True)
class _Look:
    """One second."""

    at: float
    limit: int
    in_flight: int


@dataclass(slots=True)
class _Run:
    looks: list[_Look]
    answered: list[tuple[float, float]]
    """When, and after how long."""

    def limit(self, begin: float, end: float) -> float:
        """Its mean from the one instant to the other, seconds."""
        return mean([look.limit for look in self.looks if begin <= look.at < end])

    def goodput(self, begin: float, end: float) -> float:
        """Answers within the client's second, as a part of capacity."""
        return sum(begin <= at < end for at, _ in self.answered) / (end - begin) / CAPACITY

    def latency_s(self, q: float, begin: float, end: float) -> float:
        """A quantile of what the clients saw."""
        return quantile([latency_s for at, latency_s in self.answered if begin <= at < end], q)


def d14(seed: int, scale: float = 1.0) -> Finding:
    """A ramp up to 1.5 times what eight workers can, held, with an outage in between."""
    found = Finding(
        case="D14",
        title="the adaptive limit: eight workers behind it, clients that wait a second",
        set_up="service p90 50 ms, p99 150 ms; ramp over 160 s to 1.5x, held; everything fails from 200 to 210 s",
    )
    adaptive = _run(BOUNDS, seed)
    ideal = _run(WORKERS, seed)
    begin, end = RAMP_S, OUTAGE[0]
    found.tell("sent at once: goodput at 1.5x", "collapse", f"{_sent_at_once(seed).goodput(begin, end):.2f}")
    settled = adaptive.limit(begin, end)
    off = abs(settled / WORKERS - 1)
    found.judge("limit at 1.5x", "8", f"{settled:.1f}", "within 20 %", off <= 0.2)
    after = adaptive.limit(OUTAGE[1] + RECOVERY_S, END_S)
    off = abs(after / WORKERS - 1)
    found.judge("limit 10 s after the outage and on", "8", f"{after:.1f}", "within 20 %", off <= 0.2)
    ours, theirs = adaptive.goodput(begin, end), ideal.goodput(begin, end)
    found.judge("goodput at 1.5x", f"{theirs:.2f} (limit 8)", f"{ours:.2f}", ">= 90 % of that", ours >= 0.9 * theirs)
    back = adaptive.goodput(OUTAGE[1] + RECOVERY_S, END_S)
    found.judge("goodput after the outage", f"{theirs:.2f}", f"{back:.2f}", ">= 90 % of that", back >= 0.9 * theirs)
    for q, load_end in ((0.5, 0.5), (0.99, 0.5)):
        until = RAMP_S * load_end / TOP
        ours_s, ideal_s = (run.latency_s(q, until - 20.0, until) for run in (adaptive, ideal))
        found.tell(f"half loaded: p{q * 100:g}", f"{ideal_s * 1e3:.0f} ms", f"{ours_s * 1e3:.0f} ms")
    looks = adaptive.looks[::4]
    lines = {
        "limit": [(look.at, float(look.limit)) for look in looks],
        "in flight": [(look.at, float(look.in_flight)) for look in looks],
        "workers": [(0.0, float(WORKERS)), (END_S, float(WORKERS))],
    }
    found.plots["adaptive-limit"] = line_plot(
        "The adaptive limit", Axis("s"), Axis("requests", least=0.0), lines, dots=False
    )
    return found


class _Outage:
    """A server behind something that makes everything fail after a millisecond, for a while."""

    def __init__(self, events: Events, server: SlotServer) -> None:
        self._events = events
        self._server = server
        self._failing = FailingServer(events, 0.001)

    @property
    def in_flight(self) -> int:
        """Of both."""
        return self._server.in_flight + self._failing.in_flight

    def begin(self, seconds: float, done: Act) -> Work:
        """At the server, unless it cannot be reached."""
        out = OUTAGE[0] <= self._events.now < OUTAGE[1]
        return (self._failing if out else self._server).begin(seconds, done)

    def cancel(self, work: Work) -> None:
        """Where it is."""
        (self._failing if work.failed else self._server).cancel(work)


def _run(slots: int | tuple[int, int], seed: int) -> _Run:
    events, rng = Events(), random.Random(seed)
    servers: dict[str, Server] = {"only": _Outage(events, SlotServer(events, WORKERS))}
    pool = pool_of(servers, slots=slots, seed=seed)
    standard = promise("standard", deadline_s=TIMEOUT_S)
    run = _Run([], [])
    gateway = Gateway(
        events, pool, servers, [standard], answered=lambda latency_s: run.answered.append((events.now, latency_s))
    )

    def arrive() -> None:
        gateway.ask(Asked(traffic_class=standard, client="one", seconds=(SERVICE(rng),), arrived=events.now))

    def look() -> None:
        only = pool.endpoints[0]
        run.looks.append(_Look(events.now, only.slots, only.in_flight))
        events.after(0.25, look)

    look()
    poisson(events, _rate, arrive, rng, until=END_S)
    events.run(END_S)
    return run


def _rate(now: float) -> float:
    return min(1.0, max(0.01, now / RAMP_S)) * TOP * CAPACITY


def _sent_at_once(seed: int) -> _Run:
    """No limit, and a server that goes on with what nobody waits for any more."""
    events, rng = Events(), random.Random(seed)
    servers = [SlotServer(events, WORKERS)]
    clients = Clients(events, servers, [RoundRobin(servers, rng)], rng)
    run = _Run([], [])

    def ended(latency_s: float, *_: object) -> None:
        if latency_s <= TIMEOUT_S:
            run.answered.append((events.now, latency_s))

    poisson(events, _rate, lambda: clients.send((SERVICE(rng),), ended), rng, until=OUTAGE[0])
    events.run(OUTAGE[0])
    return run
