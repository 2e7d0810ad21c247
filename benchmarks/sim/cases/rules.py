# SPDX-License-Identifier: Apache-2.0
"""D1 and D2: a hundred clients and a hundred servers with neighbours, Prequal's ramp and its table of rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.choosing.picker import Picker
from benchmarks.sim.antagonists import Level, jump
from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, quantile
from benchmarks.sim.gateway import Asked, Gateway
from benchmarks.sim.pickers import COSTS, by_cost
from benchmarks.sim.plot import Axis, line_plot
from benchmarks.sim.policies import Clients, LeastInFlight, PolledTwoChoices, RoundRobin, Rule, WeightedRoundRobin
from benchmarks.sim.prequal import Readings, hot_cold, probed_c3
from benchmarks.sim.servers import Server, SharedServer
from benchmarks.sim.service import poisson, truncated_normal, truncated_normal_mean

__all__ = ["d1", "d2"]

SERVERS, CLIENTS = 100, 100
CORES = 6.0
"""A server's allocation."""
MU_S = 0.2
DEADLINE_S = 5.0
SLOTS = 32
RULES = ("round robin", "weighted round robin", "least loaded", "YARP two choices", "C3", "hot/cold")
OURS = "ours"
IN_OUR_GATE = {f"in our gate, hot/cold, {name}": by_cost(cost) for name, cost in COSTS.items()}
# A part of the servers is on old machines: each request costs them more, which is what weights can see.
SLOW_PART, SLOWER = 0.3, 2.0


@dataclass(frozen=True, slots=True)
class _World:
    """One experiment's load and neighbours."""

    load: float
    levels: tuple[Level, ...]
    slow: bool
    warm_up_s: float
    seconds: float


@dataclass(slots=True)
class _Result:
    """Latencies of what arrived after the warm-up; a deadline counts as its own length."""

    latencies: list[float]

    def ms(self, q: float) -> float:
        """A quantile, cut at the deadline."""
        return min(DEADLINE_S, quantile(self.latencies, q)) * 1e3

    def text(self, q: float) -> str:
        """As the published table has it."""
        found = self.ms(q)
        return "TO" if found >= DEADLINE_S * 1e3 else f"{found:,.0f}"

    @property
    def errors(self) -> float:
        """Part beyond the deadline."""
        return sum(latency_s >= DEADLINE_S for latency_s in self.latencies) / len(self.latencies)


def _run(name: str, world: _World, seed: int) -> _Result:
    """The same arrivals, work and neighbours for every rule."""
    events = Events()
    servers = [SharedServer(events, CORES) for _ in range(SERVERS)]
    until = world.warm_up_s + world.seconds
    neighbours = random.Random(seed)
    for server in servers:
        jump(events, server, world.levels, random.Random(neighbours.random()), until=until)
    factors = [SLOWER if world.slow and index < SLOW_PART * SERVERS else 1.0 for index in range(SERVERS)]
    rng, draw = random.Random(seed + 1), truncated_normal(MU_S)
    result = _Result([])

    def ended(came: float, latency_s: float) -> None:
        if came >= world.warm_up_s:
            result.latencies.append(latency_s)

    between = _peers(name) if name in RULES else _ours(IN_OUR_GATE.get(name, "least_latency"))
    send = between(events, servers, random.Random(seed + 2), ended)
    mean_s = truncated_normal_mean(MU_S) * sum(factors) / SERVERS
    rate = world.load * SERVERS * CORES / mean_s

    offered = 0

    def arrive() -> None:
        nonlocal offered
        offered += events.now >= world.warm_up_s
        seconds = draw(rng)
        send([seconds * factor for factor in factors] if world.slow else (seconds,))

    poisson(events, lambda _: rate, arrive, rng, until=until)
    # What has not come back by then has passed its deadline, and the server goes on with it.
    events.run(until + DEADLINE_S)
    result.latencies += [DEADLINE_S] * (offered - len(result.latencies))
    return result


Ended = Callable[[float, float], None]
"""(when it arrived, its latency)"""
Send = Callable[[Sequence[float]], None]


Between = Callable[[Events, Sequence[SharedServer], random.Random, Ended], Send]
"""What stands between the clients and the servers."""


def _peers(name: str) -> Between:
    def world(events: Events, servers: Sequence[SharedServer], rng: random.Random, ended: Ended) -> Send:
        readings = Readings(servers)

        def rule() -> Rule:
            own = random.Random(rng.random())
            match name:
                case "round robin":
                    return RoundRobin(servers, own)
                case "weighted round robin":
                    return WeightedRoundRobin(servers, own, lambda index: servers[index].accounts)
                case "least loaded":
                    return LeastInFlight(servers, own)
                case "YARP two choices":
                    return PolledTwoChoices(servers, own)
                case "C3":
                    return probed_c3(readings, own)
                case _:
                    return hot_cold(readings, own)

        clients = Clients(events, servers, [rule() for _ in range(CLIENTS)], rng)

        def send(seconds: Sequence[float]) -> None:
            came = events.now
            clients.send(seconds, lambda latency_s, *_: ended(came, latency_s))

        return send

    return world


def _ours(pick: str | Picker) -> Between:
    """One gateway before all servers; its clients need no rule."""

    def world(events: Events, servers: Sequence[SharedServer], rng: random.Random, ended: Ended) -> Send:
        named: dict[str, Server] = {f"s{index}": server for index, server in enumerate(servers)}
        only = promise("only")
        pool = pool_of(named, slots=SLOTS, pick=pick, seed=1)
        gateway = Gateway(
            events, pool, named, [only], answered=lambda latency_s: ended(events.now - latency_s, latency_s)
        )
        clients = random.Random(rng.random())

        def send(seconds: Sequence[float]) -> None:
            client = f"c{clients.randrange(CLIENTS)}"
            gateway.ask(Asked(traffic_class=only, client=client, seconds=seconds, arrived=events.now))

        return send

    return world


# Every server keeps its allocation, two of five have much more: 2.0 allocations on average, the last step is 1.74.
RAMP_LEVELS = (Level(CORES, 0.6, 15.0), Level(3.5 * CORES, 0.4, 10.0))
CLIFF = {1.03: 0.0, 1.74: 0.25}
"""Errors of weighted round robin that are exceeded, by load."""
RAMP_STEPS = tuple(0.75 * (10 / 9) ** step for step in (0, 2, 3, 8))


def d1(seed: int, scale: float = 1.0) -> Finding:
    """The ramp: weighted round robin, hot/cold as published, ours."""
    found = Finding(
        case="D1",
        title="Prequal's load ramp: 100 clients, 100 servers, loads from 0.75 to 1.74 of the allocation",
        set_up="cost normal, sigma = mu = 200 ms; 6 cores allocated, 60 % of the time no more, else 21; 5 s deadline",
    )
    names = ("weighted round robin", "hot/cold", OURS)
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    published = {0.75: "equal", 1.03: "WRR 5 s, Prequal low", 1.74: "WRR > 25 % errors, Prequal 0"}
    for load in RAMP_STEPS if scale >= 1.0 else RAMP_STEPS[2:3]:
        world = _World(load, RAMP_LEVELS, False, 6.0, 6.0 * scale)
        results = {name: _run(name, world, seed) for name in names}
        for name, result in results.items():
            lines[name].append((load, result.ms(0.999)))
        weighted, theirs, ours = results.values()
        peers = f"WRR {weighted.text(0.999)}, {weighted.errors:.1%}; hot/cold {theirs.text(0.999)}, {theirs.errors:.1%}"
        told = published.get(round(load, 2), "")
        row = (f"load {load:.2f}: p99.9 ms, errors", f"{peers} ({told})" if told else peers)
        kept = ours.ms(0.999) <= 1.02 * theirs.ms(0.999) and ours.errors <= theirs.errors
        found.judge(*row, f"{ours.text(0.999)}, {ours.errors:.1%}", "<= 1.02x hot/cold", kept)
        if round(load, 2) in CLIFF:
            errors = CLIFF[round(load, 2)]
            cliff = weighted.ms(0.999) >= DEADLINE_S * 1e3 and weighted.errors > errors and theirs.errors == 0.0
            found.judge(
                f"load {load:.2f}: the cliff",
                told,
                f"WRR {weighted.errors:.1%}",
                f"WRR TO, > {errors:.0%} errors",
                cliff,
            )
    if scale >= 1.0:
        up = Axis("p99.9 ms", logarithmic=True)
        found.plots["load-ramp"] = line_plot("Prequal's load ramp", Axis("load"), up, lines)
    return found


# Neighbours take even a part of the allocation now and then: what equal and stale weights cannot stand.
TABLE_LEVELS = (Level(0.85 * CORES, 0.4, 10.0), Level(1.2 * CORES, 0.2, 10.0), Level(3.0 * CORES, 0.4, 10.0))
PUBLISHED = {
    "round robin": ("4984", "TO", "TO", "TO"),
    "weighted round robin": ("173", "314", "1667", "TO"),
    "least loaded": ("343", "1804", "940", "2654"),
    "YARP two choices": ("210", "2642", "213", "1169"),
    "C3": ("161", "299", "164", "304"),
    "hot/cold": ("149", "281", "152", "286"),
}


def d2(seed: int, scale: float = 1.0) -> Finding:
    """The table of rules at 70 % and 90 %."""
    found = Finding(
        case="D2",
        title="rules beside each other at 70 and 90 %: p90 and p99, ms",
        set_up="as D1, 30 % of the servers 2x slower, neighbours leave 0.85, 1.2 or 3 allocations for 10 s",
    )
    worlds = [_World(load, TABLE_LEVELS, True, 5.0, 8.0 * scale) for load in (0.7, 0.9)]
    results = {name: [_run(name, world, seed) for world in worlds] for name in (*RULES, *IN_OUR_GATE, OURS)}
    cells = {
        name: [(result.ms(q), result.text(q)) for result in runs for q in (0.9, 0.99)] for name, runs in results.items()
    }
    found.notes.append(
        "C3 here is scored by probes, with their latency for its service time: worse than published at 90 %."
    )
    columns = ("p90@70%", "p99@70%", "p90@90%", "p99@90%")
    found.tell("ms", " / ".join(columns), " / ".join(columns))
    for name in RULES:
        shown = " / ".join(text for _, text in cells[name])
        found.tell(name, " / ".join(PUBLISHED[name]), shown)
    for name in IN_OUR_GATE:
        found.tell(name, "-", " / ".join(text for _, text in cells[name]))
    for place, column in enumerate(columns):
        (theirs, text), (ours, own) = cells["hot/cold"][place], cells[OURS][place]
        found.judge(f"ours: {column}", f"{text} (hot/cold here)", own, "<= 1.02x hot/cold", ours <= 1.02 * theirs)
    worst = cells["round robin"][3][0] >= cells["least loaded"][3][0] >= cells["hot/cold"][3][0]
    cliff = all(cells[name][3][1] == "TO" for name in RULES[:2]) and cells["hot/cold"][3][1] != "TO"
    found.judge("order and cliff, p99 at 90 %", "RR, WRR: TO; LL > hot/cold", "as published" if worst else "other",
        "order; RR, WRR: TO", worst and cliff)  # fmt: skip
    return found
