# SPDX-License-Identifier: Apache-2.0
"""D11: a gate that believes scraped load beside one that counts (llm-d-router PR 2066 and issue 2408)."""

from __future__ import annotations

import random
from collections import deque

from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, quantile
from benchmarks.sim.gateway import Asked, Gateway
from benchmarks.sim.servers import SlotServer
from benchmarks.sim.service import exponential, fixed, poisson

__all__ = ["d11"]

SCRAPE_S = 0.05
TICK_S = 0.001
THRESHOLD = 5
SERVICE_S = 0.2
RATE = 2000.0
SECONDS = 10.0
STALE_AFTER_S = 0.2


class _Scraping:
    """Sends one a tick while the load it saw last is below the threshold; closed where that is too old."""

    def __init__(self, events: Events, server: SlotServer, *, every_s: float, stale_after_s: float) -> None:
        self._events = events
        self._server = server
        self._every_s = every_s
        self._stale_after_s = stale_after_s
        self._seen = 0
        self._seen_at = 0.0
        self._waiting: deque[tuple[float, float]] = deque()
        self.most_in_flight = 0
        self.latencies: list[float] = []
        self._scrape()
        self._tick()

    def ask(self, seconds: float) -> None:
        """A request has come."""
        self._waiting.append((self._events.now, seconds))

    def _scrape(self) -> None:
        self._seen, self._seen_at = self._server.in_flight, self._events.now
        self._events.after(self._every_s, self._scrape)

    def _tick(self) -> None:
        fresh = self._events.now - self._seen_at <= self._stale_after_s
        if self._waiting and fresh and self._seen < THRESHOLD:
            came, seconds = self._waiting.popleft()
            self._server.begin(seconds, lambda: self.latencies.append(self._events.now - came))
            self.most_in_flight = max(self.most_in_flight, self._server.in_flight)
        self._events.after(TICK_S, self._tick)


def d11(seed: int, scale: float = 1.0) -> Finding:
    """Overshoot under a backlog; what staleness that closes the door does to a calm pool."""
    found = Finding(
        case="D11",
        title="old telemetry: how far past its limit a backend is filled",
        set_up="limit 5, service 200 ms, a backlog; scraped every 50 ms, one dispatch a millisecond; ours counts",
    )
    seconds = SECONDS * scale
    events, rng = Events(), random.Random(seed)
    scraping = _Scraping(events, SlotServer(events, THRESHOLD), every_s=SCRAPE_S, stale_after_s=1.0)
    draw = exponential(SERVICE_S)
    poisson(events, lambda _: RATE, lambda: scraping.ask(draw(rng)), rng, until=seconds)
    events.run(seconds)
    found.tell("scraped: overshoot", "up to ~50", str(scraping.most_in_flight - THRESHOLD))
    gateway = _ours(seed, seconds, RATE, slots=THRESHOLD, service_s=SERVICE_S)
    overshoot = gateway.most_in_flight["only"] - THRESHOLD
    found.judge("ours: overshoot", "0", str(overshoot), "0", overshoot == 0)
    _stale(found, seed, seconds * 6)
    return found


def _ours(seed: int, seconds: float, rate: float, *, slots: int, service_s: float) -> Gateway:
    events, rng, draw = Events(), random.Random(seed), exponential(service_s)
    servers = {"only": SlotServer(events, slots)}
    standard = promise("standard", deadline_s=1.0)
    gateway = Gateway(events, pool_of(servers, slots=slots), servers, [standard])

    def arrive() -> None:
        gateway.ask(Asked(traffic_class=standard, client="one", seconds=(draw(rng),), arrived=events.now))

    poisson(events, lambda _: rate, arrive, rng, until=seconds)
    events.run(seconds + 1.0)
    return gateway


def _stale(found: Finding, seed: int, seconds: float) -> None:
    """One calm endpoint of 40 ms, scraped every 15 s, and readings older than 200 ms mean saturated."""
    events, rng, draw = Events(), random.Random(seed), fixed(0.04)
    closed = _Scraping(events, SlotServer(events, 16), every_s=15.0, stale_after_s=STALE_AFTER_S)
    poisson(events, lambda _: 5.0, lambda: closed.ask(draw(rng)), rng, until=seconds)
    events.run(seconds + 20.0)
    what = "one calm endpoint, stale readings close the gate: median"
    found.tell(what, "40 ms -> 9.7 s", f"{quantile(closed.latencies, 0.5):.1f} s")
    gateway = _ours(seed, seconds, 5.0, slots=16, service_s=0.04)
    waits = quantile(gateway.waits["standard"], 0.99)
    found.judge("ours, which has no readings: p99 wait at the gate", "-", f"{waits * 1e3:.1f} ms", "0 ms", waits == 0.0)
