# SPDX-License-Identifier: Apache-2.0
"""A gate with its pool and endpoints, as whoever reads their numbers sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qos.traffic_class import TrafficClass

__all__ = ["AttemptsSeen", "EndpointSeen", "GateSeen", "PoolSeen"]


@dataclass
class AttemptsSeen:
    """Retries and hedges so far."""

    retries: int = 0
    retries_denied: int = 0
    hedges: int = 0
    hedges_won: int = 0


@dataclass
class PredictionSeen:
    """Seconds that are expected whenever somebody asks."""

    predicted_s: float | None

    def seconds(self, now: float) -> float | None:
        return self.predicted_s


@dataclass
class EndpointSeen:
    """An endpoint whose states come by the instant."""

    name: str
    in_flight: int = 0
    slots: int = 1
    predicted_s: float | None = None
    states: Mapping[float, str] = field(default_factory=dict)

    @property
    def prediction(self) -> PredictionSeen:
        return PredictionSeen(self.predicted_s)

    def state(self, now: float) -> str:
        return self.states.get(now, "healthy")


@dataclass
class PoolSeen:
    """A pool to which endpoints are added."""

    name: str
    endpoints: list[EndpointSeen] = field(default_factory=list)

    def add(self, name: str, **told: Any) -> None:
        self.endpoints.append(EndpointSeen(name, **told))


class GateSeen:
    """A gate with the numbers that it is given."""

    def __init__(
        self,
        pool: str,
        *,
        waiting: Mapping[str, int] | None = None,
        evicted: Counter[str] | None = None,
        counts: AttemptsSeen | None = None,
    ) -> None:
        self.pool = PoolSeen(pool)
        self.waiting = waiting or {}
        self.evicted: Counter[str] = evicted or Counter()
        self.counts = counts or AttemptsSeen()

    def depth(self, traffic_class: TrafficClass) -> int:
        return self.waiting.get(traffic_class.name, 0)
