# SPDX-License-Identifier: Apache-2.0
"""Pools whose backends answer nothing, and requests for them."""

from __future__ import annotations

from typing import Any

from backends.body import Body
from backends.choosing.picker import least_in_flight
from backends.endpoint import Endpoint
from backends.messages import Api, Reply, Request
from backends.pool import Pool
from qos.limit import FixedLimit
from qos.timeline import Timeline
from qos.traffic_class import ClassTable, TrafficClass


class IdleBackend:
    """A backend of which only the readiness is ever asked."""

    api = Api.OIP

    def __init__(self) -> None:
        self.ready = True

    async def start(self) -> None:
        """Nothing to start."""

    async def infer(self, request: Request) -> Reply:
        raise NotImplementedError

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        raise NotImplementedError

    async def probe(self, *, deadline: float) -> None:
        """Always well."""

    async def close(self) -> None:
        """Nothing to close."""


def pool_of(*slots: int, name: str = "digits") -> Pool:
    """A pool with one endpoint for each number of slots."""
    endpoints = [Endpoint(f"e{n}", IdleBackend(), FixedLimit(each)) for n, each in enumerate(slots)]
    return Pool(name, endpoints, least_in_flight)


def traffic_class(
    rank: int = 0, *, queue_s: float = 1.0, deadline_s: float = 10.0, gate_share: float = 0.0
) -> TrafficClass:
    """The class of this rank."""
    return TrafficClass(
        name=f"rank-{rank}", rank=rank, dscp=0, deadline_s=deadline_s, queue_s=queue_s, gate_share=gate_share
    )


def class_table_of(count: int) -> ClassTable:
    """So many of them, the first is the default one."""
    classes = [traffic_class(rank) for rank in range(count)]
    return ClassTable(classes, classes[0])


def request_for(
    of: TrafficClass,
    *,
    now: float,
    body: Body | None = None,
    deadline: float | None = None,
    rtt_s: float | None = None,
    **facts: Any,
) -> Request:
    """A request of that class which arrives now."""
    return Request(
        request_id="r",
        model="digits",
        traffic_class=of,
        deadline=now + of.deadline_s if deadline is None else deadline,
        body=Body.of(b"") if body is None else body,
        timeline=Timeline(now, rtt_s=rtt_s),
        **facts,
    )
