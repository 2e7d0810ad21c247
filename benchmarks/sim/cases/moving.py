# SPDX-License-Identifier: Apache-2.0
"""D5: ten backends with neighbours that move, the published replication of Prequal that fits this gateway's pools.

D5b has more places than cores, as a pool has whose limits were set with room to spare: what is in flight then tells
more of the next request's latency than what the last ones took.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from backends.choosing.picker import Picker
from benchmarks.sim.antagonists import hot_sets, move
from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, mean, quantile
from benchmarks.sim.gateway import Asked, Gateway
from benchmarks.sim.pickers import COSTS, by_cost
from benchmarks.sim.plot import Axis, line_plot
from benchmarks.sim.policies import Clients, LeastInFlight, RoundRobin, Rule
from benchmarks.sim.servers import Server, SharedServer
from benchmarks.sim.service import poisson, truncated_normal, truncated_normal_mean

__all__ = ["LOADS", "d5", "d5b"]


class Cores(NamedTuple):
    """What one backend has."""

    allocated: float
    """Load 1.0 would use it up."""
    cold: float
    hot: float


LOADS = tuple(0.75 * (10 / 9) ** step for step in range(9))
BACKENDS = 10
PUBLISHED = Cores(4.0, cold=8.0, hot=3.6)
"""Cold with cores to spare, hot with less than its allocation: round robin at 1.03x has the published p99 of 2.3 s."""
MOVES_S = 10.0
STATES = 6
SECONDS = STATES * MOVES_S
MU_S = 0.08
SLOTS = 8
SHARING = Cores(0.75 * 8.0 + 0.25 * 3.0, cold=8.0, hot=3.0)
"""Allocated is what there is on average, two or three of ten being hot."""
SHARING_LOAD, SHARING_SLOTS = 0.85, 16

Send = Callable[[float], None]
Ended = Callable[[float], None]
World = Callable[[Events, Sequence[SharedServer], random.Random, Ended], Send]
"""What stands between the clients and the servers: sends one request of so much work."""


def d5(seed: int, scale: float = 1.0) -> Finding:
    """Against round robin and least in flight that send at once; loads as published."""
    found = Finding(
        case="D5",
        title="ten backends, two or three of them hot, another set every 10 s",
        set_up="normal cost, sigma = mu = 80 ms; 4 cores each, cold 8, hot 3.6; ours: 8 slots each, waits in the gate",
    )
    worlds: dict[str, World] = {
        "round robin": sends_at_once(RoundRobin),
        "least in flight": sends_at_once(LeastInFlight),
        "ours": _gateway("least_latency", SLOTS),
    }
    loads = LOADS if scale >= 1.0 else LOADS[3:4]
    results = {name: [_run(world, load, seed, SECONDS * scale) for load in loads] for name, world in worlds.items()}
    for place, load in enumerate(loads):
        robin, least, ours = (results[name][place] for name in worlds)
        for what, q in (("p99", 0.99), ("p50", 0.5)):
            peers = f"{_ms(robin, q)} (least in flight {_ms(least, q)})"
            ratio = quantile(ours, q) / quantile(robin, q)
            row = (f"load {load:.2f}: {what}", peers, f"{_ms(ours, q)}, {ratio:.2f}x")
            bound = {"p99": 0.64, "p50": 1.05}[what]
            if abs(load - 1.03) < 0.01:
                found.judge(*row, f"<= {bound}x", ratio <= bound)
            else:
                found.tell(*row)
    found.notes.append(
        "Round robin and least in flight of the middle column send at once, as published; servers queue."
    )
    if scale >= 1.0:
        _others(found, seed)
        lines = {
            f"{name}, {what}": [
                (load, quantile(latencies, q) * 1e3) for load, latencies in zip(loads, runs, strict=True)
            ]
            for what, q in (("p99", 0.99), ("p50", 0.5))
            for name, runs in results.items()
        }
        up = Axis("ms", logarithmic=True)
        found.plots["moving-antagonists"] = line_plot("Ten backends, moving neighbours", Axis("load"), up, lines)
    return found


def d5b(seed: int, scale: float = 1.0) -> Finding:
    """The cost by which the picker compares the cold ones, beside other costs and other pickers."""
    found = Finding(
        case="D5b",
        title="the same with more places than cores: pickers beside each other in the same gate",
        set_up=f"8 cores each, hot 3, among {SHARING_SLOTS} places; load {SHARING_LOAD} of what there is on average",
    )

    def run(pick: str | Picker) -> list[float]:
        world = _gateway(pick, SHARING_SLOTS)
        return _run(world, SHARING_LOAD, seed, SECONDS * scale, cores=SHARING)

    ours = run("least_latency")
    peers: dict[str, str | Picker] = {f"hot/cold, {name}": by_cost(cost) for name, cost in COSTS.items()}
    for name, pick in {**peers, "fewest in flight": "least_in_flight"}.items():
        theirs = run(pick)
        kept = all(quantile(ours, q) <= 1.02 * quantile(theirs, q) for q in (0.5, 0.99))
        found.judge(name, _tails(theirs), _tails(ours), "<= 1.02x of both", kept)
    return found


def _others(found: Finding, seed: int) -> None:
    """The same gate with the other pickers, and with a limit that finds the slots itself."""
    for name, pick, slots in (
        ("round robin among free", "round_robin", SLOTS),
        ("least in flight among free", "least_in_flight", SLOTS),
        ("ours, adaptive limit", "least_latency", (1, 64)),
    ):
        latencies = _run(_gateway(pick, slots), LOADS[3], seed, SECONDS)
        found.tell(f"load 1.03, in our gate: {name}", "-", _tails(latencies))


def _ms(latencies: Sequence[float], q: float) -> str:
    return f"{quantile(latencies, q) * 1e3:,.0f} ms"


def _tails(latencies: Sequence[float]) -> str:
    return f"p99 {_ms(latencies, 0.99)}, p50 {_ms(latencies, 0.5)}"


def _run(world: World, load: float, seed: int, seconds: float, *, cores: Cores = PUBLISHED) -> list[float]:
    """Latencies; the same arrivals, work and moves for every world."""
    events = Events()
    servers = [SharedServer(events, cores.cold) for _ in range(BACKENDS)]
    sets = hot_sets(BACKENDS, STATES, random.Random(seed))
    move(events, servers, sets, every_s=MOVES_S, cold=cores.cold, hot=cores.hot)
    rng, draw = random.Random(seed + 1), truncated_normal(MU_S)
    latencies: list[float] = []
    send = world(events, servers, random.Random(seed + 2), latencies.append)
    rate = load * BACKENDS * cores.allocated / truncated_normal_mean(MU_S)
    poisson(events, lambda _: rate, lambda: send(draw(rng)), rng, until=seconds)
    # Long enough for the last to come back: what is cut off would be the tail.
    events.run(seconds + 60.0)
    if not latencies or mean(latencies) <= 0.0:
        raise RuntimeError("nothing was answered")
    return latencies


def sends_at_once(rule: Callable[[Sequence[Server], random.Random], Rule]) -> World:
    """One client with this rule, and no queue but the servers'."""

    def world(events: Events, servers: Sequence[SharedServer], rng: random.Random, ended: Ended) -> Send:
        clients = Clients(events, servers, [rule(servers, rng)], rng)
        return lambda seconds: clients.send((seconds,), lambda latency_s, *_: ended(latency_s))

    return world


def _gateway(pick: str | Picker, slots: int | tuple[int, int]) -> World:
    def world(events: Events, servers: Sequence[SharedServer], rng: random.Random, ended: Ended) -> Send:
        named: dict[str, Server] = {f"s{index}": server for index, server in enumerate(servers)}
        only = promise("only")
        gateway = Gateway(events, pool_of(named, slots=slots, pick=pick, seed=1), named, [only], answered=ended)
        return lambda seconds: gateway.ask(
            Asked(traffic_class=only, client="one", seconds=(seconds,), arrived=events.now)
        )

    return world
