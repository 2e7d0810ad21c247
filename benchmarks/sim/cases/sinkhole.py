# SPDX-License-Identifier: Apache-2.0
"""D10: one of three backends fails everything at once (linkerd2 #11669), or is silent (production-stack #749)."""

from __future__ import annotations

import random

from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, quantile
from benchmarks.sim.gateway import Asked, Gateway
from benchmarks.sim.policies import Clients, PeakEwma
from benchmarks.sim.servers import FailingServer, Server, SlotServer
from benchmarks.sim.service import fixed, poisson
from inferlane.errors import Reason

__all__ = ["d10"]

RATE = 50.0
SECONDS = 60.0
AFTER_S = 1.0
FAILS_AFTER_S = 0.001
WELL = fixed(0.1)
SLOTS = 16
BAD = "bad"


def _servers(events: Events, bad: Server) -> dict[str, Server]:
    return {BAD: bad, "well-1": SlotServer(events, SLOTS), "well-2": SlotServer(events, SLOTS)}


def d10(seed: int, scale: float = 1.0) -> Finding:
    """Share of the bad backend and successes; peers: latency believed as it is measured."""
    found = Finding(
        case="D10",
        title="sinkhole: one backend of three fails at once",
        set_up="50 requests/s for 60 s; bad: 500 after 1 ms; well: 200 after 100 ms, 16 slots; ours retries (20 %)",
    )
    seconds = SECONDS * scale
    share, success = _peak_ewma(seed, seconds)
    found.tell("plain peak EWMA: share of the bad one", "most", f"{share:.1%}")
    found.tell("plain peak EWMA: success", "-", f"{success:.2%}")
    events = Events()
    servers = _servers(events, FailingServer(events, FAILS_AFTER_S))
    gateway, early = _ours(events, servers, seed, seconds, deadline_s=5.0)
    late = (gateway.sent[BAD] - early[BAD]) / max(1, sum(gateway.sent.values()) - sum(early.values()))
    tally = gateway.tallies["standard"]
    success = tally.answered / tally.offered
    found.tell("ours: sent to the bad one in the first second", "-", str(early[BAD]))
    found.judge("ours: share of the bad one after that", "~0", f"{late:.2%}", "<= 1 %", late <= 0.01)
    found.judge("ours: success", "> 99 %", f"{success:.2%}", ">= 99 %", success >= 0.99)
    _hung(found, seed, seconds)
    return found


def _hung(found: Finding, seed: int, seconds: float) -> None:
    """One that takes requests and never answers."""
    events = Events()
    hung = SlotServer(events, SLOTS, speed=1e-9)
    gateway, _ = _ours(events, _servers(events, hung), seed, seconds, deadline_s=1.0)
    tally = gateway.tallies["standard"]
    lost = sum(tally.refused.values()) / tally.offered
    late = tally.refused.get(Reason.DEADLINE, 0)
    found.judge(
        "one hung backend: others' p99",
        "100 ms",
        f"{quantile(tally.latencies, 0.99) * 1e3:.0f} ms",
        "<= 200 ms",
        quantile(tally.latencies, 0.99) <= 0.2,
    )
    found.tell("one hung backend: lost, all at their deadline of 1 s", "-", f"{lost:.2%} ({late} requests)")


def _peak_ewma(seed: int, seconds: float) -> tuple[float, float]:
    events, rng = Events(), random.Random(seed)
    servers = list(_servers(events, FailingServer(events, FAILS_AFTER_S)).values())
    clients = Clients(events, servers, [PeakEwma(servers, rng)], rng)
    ended: list[bool] = []
    poisson(
        events,
        lambda _: RATE,
        lambda: clients.send((WELL(rng),), lambda *end: ended.append(end[2])),
        rng,
        until=seconds,
    )
    events.run()
    return clients.sent[0] / sum(clients.sent), ended.count(False) / len(ended)


def _ours(
    events: Events, servers: dict[str, Server], seed: int, seconds: float, *, deadline_s: float
) -> tuple[Gateway, dict[str, int]]:
    """The gateway at the end, and what it had sent after the first second."""
    rng = random.Random(seed)
    standard = promise("standard", deadline_s=deadline_s)
    gateway = Gateway(events, pool_of(servers, slots=SLOTS, seed=seed), servers, [standard])
    early: dict[str, int] = {}
    events.at(AFTER_S, lambda: early.update(gateway.sent))

    def arrive() -> None:
        gateway.ask(Asked(traffic_class=standard, client="one", seconds=(WELL(rng),), arrived=events.now))

    poisson(events, lambda _: RATE, arrive, rng, until=seconds)
    events.run(seconds + deadline_s)
    return gateway, early
