# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of pools: who waits, who was tried again, and how each endpoint is doing.

All of it is read from its owner when somebody scrapes. Labels are names of classes, pools and endpoints; an endpoint
that discovery has taken out of its pool is not told any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from proxy.telemetry.families import Family
from qos.traffic_class import TrafficClass

__all__ = ["AttemptCounts", "EndpointView", "GateCounts", "PoolView", "Prediction", "gate_families"]

_OF_POOL = ("pool",)
_OF_ENDPOINT = ("pool", "endpoint")
_STATES = ("healthy", "ejected", "probing", "draining", "loading")


class Prediction(Protocol):
    """What an endpoint is expected to take."""

    def seconds(self, now: float) -> float | None:
        """Dispatch to first byte; None: nothing is known."""
        ...


class EndpointView(Protocol):
    """One endpoint, as it is."""

    @property
    def name(self) -> str:
        """Unique in its pool."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that it has now."""
        ...

    @property
    def slots(self) -> int:
        """Requests that it may have, as its limit is now."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What it is expected to take."""
        ...

    def state(self, now: float) -> str:
        """healthy, ejected, probing, draining or loading."""
        ...


class PoolView(Protocol):
    """A pool's endpoints, as they are."""

    @property
    def name(self) -> str:
        """As the config has it."""
        ...

    @property
    def endpoints(self) -> Sequence[EndpointView]:
        """Those of now."""
        ...


class AttemptCounts(Protocol):
    """What retries and hedges did in one pool, since its start."""

    @property
    def retries(self) -> int:
        """Requests sent to another endpoint after one failed them."""
        ...

    @property
    def retries_denied(self) -> int:
        """Retries that the budget did not allow."""
        ...

    @property
    def hedges(self) -> int:
        """Second copies sent while the first ran."""
        ...

    @property
    def hedges_won(self) -> int:
        """Second copies that answered first."""
        ...


class GateCounts(Protocol):
    """What a pool's gate and attempts count, as it stands."""

    @property
    def pool(self) -> PoolView:
        """Whose gate it is."""
        ...

    @property
    def evicted(self) -> Mapping[str, int]:
        """Requests that lost their place, waiting or in flight, to a higher class; by the name of their own."""
        ...

    @property
    def counts(self) -> AttemptCounts:
        """Retries and hedges."""
        ...

    def depth(self, traffic_class: TrafficClass) -> int:
        """How many requests of this class wait."""
        ...


def gate_families(gates: Iterable[GateCounts], classes: Iterable[TrafficClass], now: float) -> Iterator[Family]:
    """All of them. now: monotonic seconds."""
    gates, names = list(gates), list(classes)
    waiting = Family("inferlane_gate_waiting", "Requests waiting for a place.", ("pool", "class"))
    evicted = Family(
        "inferlane_evicted", "Requests that lost their place to a higher class.", ("pool", "class"), counts=True
    )
    for gate in gates:
        pool = gate.pool.name
        waiting.samples.extend(((pool, each.name), gate.depth(each)) for each in names)
        evicted.samples.extend(((pool, class_name), count) for class_name, count in gate.evicted.items())
    yield from (waiting, evicted)
    yield from _of_attempts(gates)
    yield from _of_endpoints([each.pool for each in gates], now)


def _of_attempts(gates: Sequence[GateCounts]) -> Iterator[Family]:
    for attribute, text in _ATTEMPTS:
        family = Family(f"inferlane_{attribute}", text, _OF_POOL, counts=True)
        family.samples.extend(((gate.pool.name,), getattr(gate.counts, attribute)) for gate in gates)
        yield family


_ATTEMPTS = (
    ("retries", "Requests sent to another endpoint after one failed them."),
    ("retries_denied", "Retries that the budget did not allow."),
    ("hedges", "Second copies of requests, sent while the first ran."),
    ("hedges_won", "Second copies that answered first."),
)


def _of_endpoints(pools: Sequence[PoolView], now: float) -> Iterator[Family]:
    in_flight = Family("inferlane_in_flight", "Requests that an endpoint has now.", _OF_ENDPOINT)
    slots = Family(
        "inferlane_endpoint_slots", "Requests that an endpoint may have, as its limit is.", _OF_ENDPOINT, across="max"
    )
    ready = Family("inferlane_endpoint_ready", "1: it takes requests.", _OF_ENDPOINT, across="mean")
    state = Family(
        "inferlane_endpoint_state", "1 for the state that it is in.", (*_OF_ENDPOINT, "state"), across="mean"
    )
    predicted = Family(
        "inferlane_endpoint_predicted_seconds",
        "Expected from dispatch to first byte; absent: unknown.",
        _OF_ENDPOINT,
        across="mean",
    )
    for pool in pools:
        for endpoint in pool.endpoints:
            names = (pool.name, endpoint.name)
            in_flight.samples.append((names, endpoint.in_flight))
            slots.samples.append((names, endpoint.slots))
            is_in = endpoint.state(now)
            ready.samples.append((names, is_in in ("healthy", "probing")))
            state.samples.extend(((*names, each), each == is_in) for each in _STATES)
            expected = endpoint.prediction.seconds(now)
            if expected is not None:
                predicted.samples.append((names, expected))
    yield from (in_flight, slots, ready, state, predicted)
