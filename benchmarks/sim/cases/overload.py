# SPDX-License-Identifier: Apache-2.0
"""Eight one-at-a-time backends offered 1.5 times what they can: what a queue without overhead gives the first class."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, quantile
from benchmarks.sim.gateway import Asked, Gateway, Tally
from benchmarks.sim.policies import Clients, LeastInFlight
from benchmarks.sim.servers import Server, SlotServer
from benchmarks.sim.service import fixed, poisson

__all__ = ["overload"]

BACKENDS = 8
SERVICE_S = 0.05
CAPACITY = BACKENDS / SERVICE_S
REALTIME_PART = 0.2
DEADLINE_S = 0.5
SECONDS = 60.0
WARM_UP_S = 5.0
# Until everything that is counted has ended.
AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    realtime: Tally
    batch: Tally
    seconds: float

    @property
    def goodput(self) -> float:
        """Answers in time, as a part of capacity."""
        return (self.realtime.in_time + self.batch.in_time) / self.seconds / CAPACITY


def overload(seed: int, scale: float = 1.0) -> Finding:
    """20 % realtime with a deadline of 500 ms, the rest batch."""
    found = Finding(
        case="overload",
        title="eight backends of 50 ms, one at a time, offered 1.5x their capacity",
        set_up="Poisson arrivals, 240/s of 160/s; 20 % realtime, deadline 500 ms; batch waits 2 s at most",
    )
    seconds = SECONDS * scale
    blind = _least_in_flight(seed, seconds)
    found.tell("least in flight, no limits: realtime in time", "10.5 % (Envoy)", f"{blind:.1%}")
    calm = _run(seed, seconds, load=0.3)
    busy = _run(seed, seconds, load=1.5)
    unloaded, loaded = (quantile(each.realtime.latencies, 0.99) for each in (calm, busy))
    found.tell("unloaded (0.3x): realtime p99", "50 ms", f"{unloaded * 1e3:.1f} ms")
    ratio = loaded / unloaded
    found.judge("realtime p99 against its unloaded", "1.36-1.6x", f"{ratio:.2f}x", "<= 1.7x", ratio <= 1.7)
    in_time = busy.realtime.in_time / busy.realtime.offered
    found.judge("realtime within its deadline", "-", f"{in_time:.2%}", ">= 99.9 %", in_time >= 0.999)
    found.judge("goodput over capacity", "1.00", f"{busy.goodput:.3f}", ">= 0.95", busy.goodput >= 0.95)
    left = CAPACITY - busy.realtime.answered / busy.seconds
    batch = busy.batch.answered / busy.seconds
    found.judge("batch, requests/s", f"{left:.0f} (what is left)", f"{batch:.0f}", ">= 95 %", batch >= 0.95 * left)
    reasons = ", ".join(f"{reason} {count}" for reason, count in busy.batch.refused.items())
    found.notes.append(f"Batch refused: {reasons}")
    return found


def _run(seed: int, seconds: float, *, load: float) -> _Outcome:
    events, rng = Events(), random.Random(seed)
    until = WARM_UP_S + seconds
    servers: dict[str, Server] = {f"s{index}": SlotServer(events) for index in range(BACKENDS)}
    realtime = promise("realtime", rank=0, deadline_s=DEADLINE_S, queue_s=0.45)
    batch = promise("batch", rank=1, deadline_s=30.0, queue_s=2.0, share=0.05, most_waiting=1024)
    gateway = Gateway(events, pool_of(servers, seed=seed), servers, [realtime, batch], counted=(WARM_UP_S, until))
    service = fixed(SERVICE_S)

    def arrive() -> None:
        asked = realtime if rng.random() < REALTIME_PART else batch
        client = f"{asked.name}-{rng.randrange(8)}"
        gateway.ask(Asked(traffic_class=asked, client=client, seconds=(service(rng),), arrived=events.now))

    poisson(events, lambda _: load * CAPACITY, arrive, rng, until=until + AFTER_S)
    events.run(until + AFTER_S)
    return _Outcome(gateway.tallies["realtime"], gateway.tallies["batch"], seconds)


def _least_in_flight(seed: int, seconds: float) -> float:
    """What is in time where everything is sent at once; seconds: as long as the published run at most."""
    events, rng = Events(), random.Random(seed)
    servers = [SlotServer(events) for _ in range(BACKENDS)]
    clients = Clients(events, servers, [LeastInFlight(servers, rng)], rng)
    latencies: list[float] = []
    until = min(seconds, 10.0)
    poisson(
        events,
        lambda _: 1.5 * CAPACITY,
        lambda: clients.send((SERVICE_S,), lambda latency_s, *_: latencies.append(latency_s)),
        rng,
        until=until,
    )
    events.run()
    return sum(latency_s <= DEADLINE_S for latency_s in latencies) / len(latencies)
