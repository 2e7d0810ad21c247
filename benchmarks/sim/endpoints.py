# SPDX-License-Identifier: Apache-2.0
"""Pools of simulated servers: the gateway's own Pool and Endpoint, with nothing behind them that could be asked."""

from __future__ import annotations

import random
from collections.abc import Iterable

from backends.choosing.health import HealthRules
from backends.choosing.picker import PICKERS, Picker
from backends.endpoint import Endpoint
from backends.messages import Api, Reply, Request
from backends.pool import Pool
from qos.limit import AdaptiveLimit, FixedLimit
from qos.traffic_class import TrafficClass

__all__ = ["pool_of", "promise"]

_LONG_S = 1e7
"""A promise that no case's end reaches."""


class _Simulated:
    """A backend that is there; the work is a simulated server's."""

    ready = True
    api = Api.OIP

    async def start(self) -> None:
        """Nothing to start."""

    async def infer(self, request: Request) -> Reply:
        raise NotImplementedError("benchmarks.sim.gateway asks the simulated server")

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        raise NotImplementedError("nobody asks a simulated server for it")

    async def probe(self, *, deadline: float) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing to close."""


def pool_of(
    names: Iterable[str],
    *,
    slots: int | tuple[int, int] = 1,
    pick: str | Picker = "least_latency",
    rules: HealthRules | None = None,
    seed: int = 0,
) -> Pool:
    """Endpoints of these names. slots: of each; or (floor, ceiling) of an adaptive limit; pick: as the config names it,
    or one that it does not have."""
    endpoints = [
        Endpoint(name, _Simulated(), FixedLimit(slots) if isinstance(slots, int) else AdaptiveLimit(*slots))
        for name in names
    ]
    picker = PICKERS[pick] if isinstance(pick, str) else pick
    return Pool("simulated", endpoints, picker, rules=rules, rng=random.Random(seed))


def promise(  # noqa: PLR0913 a class has so many sides
    name: str,
    *,
    rank: int = 0,
    deadline_s: float = _LONG_S,
    queue_s: float | None = None,
    share: float = 0.0,
    hedge: float = 0.0,
    sheddable: bool = False,
    most_waiting: int = 1 << 20,
) -> TrafficClass:
    """A traffic class; what a case does not name never binds."""
    return TrafficClass(
        name=name,
        rank=rank,
        dscp=0,
        deadline_s=deadline_s,
        queue_s=deadline_s if queue_s is None else queue_s,
        gate_share=share,
        most_waiting=most_waiting,
        most_waiting_bytes=1 << 40,
        hedge=hedge,
        sheddable=sheddable,
    )
