# SPDX-License-Identifier: Apache-2.0
"""D8 and D9: the simulator, the class queues and the picker against the formulas of queueing theory."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from benchmarks.sim.endpoints import pool_of, promise
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, mean
from benchmarks.sim.gateway import Asked, Gateway
from benchmarks.sim.plot import Axis, line_plot
from benchmarks.sim.policies import Clients, Random, Rule, TwoChoices
from benchmarks.sim.servers import Server, SlotServer
from benchmarks.sim.service import Draw, exponential, fixed, poisson
from qos.scheduler import ClassBounds, ClassQueues

__all__ = ["cobham", "d8", "d9"]

WITHIN = 0.05
HIGH_PART = 0.2


def d8(seed: int, scale: float = 1.0) -> Finding:
    """Mean sojourn with exponential service: M/M/1 by chance, two choices, one central queue."""
    found = Finding(
        case="D8",
        title="queueing sanity: mean sojourn in mean service times",
        set_up="exponential service, mean 1; Poisson arrivals; ours: the class queues",
    )
    curves: dict[str, list[tuple[float, float]]] = {}
    for load, requests in ((0.7, 100_000), (0.9, 250_000), (0.95, 800_000)):
        spread = _spread(Random, 50, load, requests=requests * scale, seed=seed)
        _compare(found, curves, "by chance (M/M/1)", load, spread, 1 / (1 - load))
    for load in (0.7, 0.9, 0.95, 0.99):
        spread = _spread(TwoChoices, 1000, load, requests=90_000 * scale, seed=seed)
        _compare(found, curves, "two choices (n = 1000)", load, spread, _two_choices(load))
    for load in (0.7, 0.8):
        ours = _pooled(10, load, requests=50_000 * scale, seed=seed)
        _compare(found, curves, "gate and pool, 10 endpoints", load, ours, _erlang_sojourn(10, load))
    for slots, most in ((10, 800_000), (100, 300_000)):
        for load, requests in ((0.7, 100_000), (0.9, 300_000), (0.95, most)):
            ours = _central(slots, load, requests=requests * scale, seed=seed)
            _compare(found, curves, f"class queues, {slots} places", load, ours, _erlang_sojourn(slots, load))
    found.notes.append("At load 0.99 a mean within 5 % takes some 10^8 requests but for two choices: left out.")
    found.plots["queueing"] = line_plot(
        "Mean sojourn by load", Axis("load"), Axis("mean service times", logarithmic=True), curves
    )
    return found


def _compare(found: Finding, curves: dict[str, list[tuple[float, float]]], *figures: object) -> None:
    what, load, ours, formula = figures
    assert isinstance(load, float) and isinstance(ours, float) and isinstance(formula, float)
    kept = abs(ours / formula - 1) <= WITHIN
    found.judge(f"{what}, load {load:g}", f"{formula:.2f}", f"{ours:.2f}", "within 5 %", kept)
    curves.setdefault(str(what), []).append((load, ours))


def _two_choices(load: float) -> float:
    """The limit for many servers (Mitzenmacher 2001): the sum of load^(2^i - 2)."""
    return math.fsum(math.pow(load, 2**i - 2) for i in range(1, 40))


def _erlang_sojourn(slots: int, load: float) -> float:
    """M/M/n: 1 + Erlang's C / (n - n * load), with service times of mean 1."""
    blocked = 1.0
    for servers in range(1, slots + 1):
        blocked = slots * load * blocked / (servers + slots * load * blocked)
    waits = blocked / (1 - load * (1 - blocked))
    return 1 + waits / (slots * (1 - load))


def _spread(
    rule: Callable[[Sequence[Server], random.Random], Rule], count: int, load: float, *, requests: float, seed: int
) -> float:
    events, rng = Events(), random.Random(seed)
    servers = [SlotServer(events) for _ in range(count)]
    clients = Clients(events, servers, [rule(servers, rng)], rng)
    # Few servers need longer to forget that they began empty than it costs them.
    draw, warm_up = exponential(1.0), max(3.0, 1500.0 / count) / (1 - load)
    sojourns: list[float] = []

    def arrive() -> None:
        counts = events.now >= warm_up
        clients.send((draw(rng),), lambda latency_s, *_: sojourns.append(latency_s) if counts else None)

    poisson(events, lambda _: count * load, arrive, rng, until=warm_up + requests / (count * load))
    events.run()
    return mean(sojourns)


def _pooled(count: int, load: float, *, requests: float, seed: int) -> float:
    """Mean sojourn at endpoints of one place each."""
    events, rng = Events(), random.Random(seed)
    servers: dict[str, Server] = {f"s{index}": SlotServer(events) for index in range(count)}
    only = promise("only")
    warm_up, draw = 2.0 / (1 - load), exponential(1.0)
    gateway = Gateway(events, pool_of(servers, seed=seed), servers, [only], counted=(warm_up, math.inf))

    def arrive() -> None:
        gateway.ask(Asked(traffic_class=only, client="one", seconds=(draw(rng),), arrived=events.now))

    poisson(events, lambda _: count * load, arrive, rng, until=warm_up + requests / (count * load))
    events.run()
    return mean(gateway.tallies["only"].latencies)


def _central(slots: int, load: float, *, requests: float, seed: int) -> float:
    """Mean sojourn: the wait, and the service of which the mean is known."""
    events, rng, draw = Events(), random.Random(seed), exponential(1.0)
    line = _Line(events, slots, 1)
    poisson(events, lambda _: slots * load, lambda: line.ask(0, draw(rng)), rng, until=requests / (slots * load))
    events.run()
    return 1.0 + mean(line.waits[0])


def cobham(load: float, high_part: float, second_moment: float) -> tuple[float, float, float]:
    """Mean waits of the high and the low class without preemption, and of both first come first served (Cobham 1954).

    Service has mean 1 and this second moment.
    """
    rest = load * second_moment / 2
    high = rest / (1 - load * high_part)
    return high, high / (1 - load), rest / (1 - load)


def d9(seed: int, scale: float = 1.0) -> Finding:
    """Two classes at one place, 20 % of the requests high."""
    found = Finding(
        case="D9",
        title="strict rank sanity: mean wait in mean service times",
        set_up="one place, Poisson arrivals, 20 % in the first class, no shares; formulas: Cobham, without preemption",
    )
    services: list[tuple[str, Draw, float]] = [("exponential", exponential(1.0), 2.0), ("fixed", fixed(1.0), 1.0)]
    for name, draw, second_moment in services:
        for load, requests in ((0.8, 150_000), (0.9, 300_000)):
            high, low, first_come = cobham(load, HIGH_PART, second_moment)
            waits = _two_classes(draw, load, requests=requests * scale, seed=seed)
            # What waits in all does not depend on the order, and its chance cancels out against the formula's.
            corrected = waits[1] * first_come / waits[2]
            _judge_wait(found, f"{name}, load {load:g}: high", high, waits[0])
            _judge_wait(found, f"{name}, load {load:g}: low", low, corrected)
            found.tell(f"{name}, load {load:g}: low over high", f"{low / high:.2f}", f"{corrected / waits[0]:.2f}")
            found.tell(f"{name}, load {load:g}: all, as first come", f"{first_come:.2f}", f"{waits[2]:.2f}")
    found.notes.append("Low: by its measured ratio to the mean wait of all, which no order changes (Kleinrock 1965).")
    return found


def _judge_wait(found: Finding, what: str, formula: float, ours: float) -> None:
    found.judge(what, f"{formula:.3f}", f"{ours:.3f}", "within 5 %", abs(ours / formula - 1) <= WITHIN)


class _Line:
    """The class queues before so many alike places, and no more of the gateway."""

    def __init__(self, events: Events, places: int, classes: int) -> None:
        self._events = events
        self._places = places
        self._busy = [0] * classes
        bounds = [ClassBounds(0.0, 1 << 30, 1 << 60)] * classes
        self._queue: ClassQueues[tuple[float, float]] = ClassQueues(bounds, max_entries=1 << 30, max_bytes=1 << 60)
        self.waits: list[list[float]] = [[] for _ in range(classes)]

    def ask(self, rank: int, seconds: float) -> None:
        """A request that takes so long has come."""
        now = self._events.now
        if sum(self._busy) < self._places:
            self._begin(rank, now, seconds)
        else:
            self._queue.offer((now, seconds), rank=rank, client="one", due=now, size=1, leaves=1e12)

    def _begin(self, rank: int, came: float, seconds: float) -> None:
        self._busy[rank] += 1
        self.waits[rank].append(self._events.now - came)
        self._events.after(seconds, lambda: self._end(rank))

    def _end(self, rank: int) -> None:
        self._busy[rank] -= 1
        entry = self._queue.first(self._busy, self._places)
        if entry is not None:
            self._queue.serve(entry, 0.0)
            self._begin(entry.rank, *entry.item)


def _two_classes(draw: Draw, load: float, *, requests: float, seed: int) -> tuple[float, float, float]:
    """Mean waits: high, low, both together."""
    events, rng = Events(), random.Random(seed)
    line = _Line(events, 1, 2)
    poisson(
        events, lambda _: load, lambda: line.ask(int(rng.random() >= HIGH_PART), draw(rng)), rng, until=requests / load
    )
    events.run()
    high, low = line.waits
    return mean(high), mean(low), mean(high + low)
