# SPDX-License-Identifier: Apache-2.0
"""Pools whose backends answer nothing, and requests for them."""

from __future__ import annotations

from backends.body import Body
from backends.endpoint import Endpoint
from backends.messages import Reply, Request
from backends.picker import least_in_flight
from backends.pool import Pool
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass


class IdleBackend:
    """A backend of which only the readiness is ever asked."""

    def __init__(self) -> None:
        self.ready = True

    async def start(self) -> None:
        """Nothing to start."""

    async def infer(self, request: Request) -> Reply:
        raise NotImplementedError

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing to close."""


def pool_of(*slots: int, name: str = "digits") -> Pool:
    """A pool with one endpoint for each number of slots."""
    endpoints = [Endpoint(f"e{n}", IdleBackend(), each) for n, each in enumerate(slots)]
    return Pool(name, endpoints, least_in_flight)


def traffic_class(rank: int = 0, *, queue_s: float = 1.0, deadline_s: float = 10.0) -> TrafficClass:
    """The class of this rank."""
    return TrafficClass(name=f"rank-{rank}", rank=rank, dscp=0, deadline_s=deadline_s, queue_s=queue_s)


def request_for(of: TrafficClass, *, now: float, body: Body | None = None, deadline: float | None = None) -> Request:
    """A request of that class which arrives now."""
    return Request(
        request_id="r",
        model="digits",
        traffic_class=of,
        deadline=now + of.deadline_s if deadline is None else deadline,
        body=Body.of(b"") if body is None else body,
        timeline=Timeline(now),
    )
