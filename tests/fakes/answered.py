# SPDX-License-Identifier: Apache-2.0
"""A request that has been answered, as the telemetry sees it."""

from __future__ import annotations

from backends.body import Body
from proxy.arrival import Answered, Arrival, Operation
from qos.timeline import Timeline
from tests.fakes.endpoints import traffic_class


def answered_request(**arrival: object) -> Answered:
    """2 ms of queue, 3 ms of backend, 5 ms of compute, 1 ms until the last byte: 11 ms, over a 20 ms network."""
    timeline = Timeline(
        received=100.0, dispatched=100.002, first_byte=100.010, finished=100.011, rtt_s=0.02, compute_s=0.005
    )
    told = {
        "request_id": "4bf92f35",
        "transport": "h3",
        "listener": "main",
        "client": "192.0.2.7",
        "dscp": 46,
        "path": "/v2/models/digits/infer",
        "operation": Operation.INFER,
        "model": "digits",
        "body": Body.of(bytes(300)),
        "timeline": timeline,
    }
    return Answered(
        arrival=Arrival(**(told | arrival)),
        traffic_class=traffic_class(0),
        why="default class",
        trusted=False,
        deadline=110.0,
        pool="digits",
        endpoint="e0",
        attempts=1,
        bytes_out=200,
    )
