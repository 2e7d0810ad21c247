# SPDX-License-Identifier: Apache-2.0
"""Requests as the walk hands them to a backend, and the walk's own habits around one."""

from __future__ import annotations

import asyncio
from time import monotonic

from backends.backend import Backend
from backends.body import Body
from backends.messages import Reply, Request
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

REALTIME = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=1, queue_s=1)
BATCH = TrafficClass(name="batch", rank=1, dscp=10, deadline_s=1, queue_s=1)

SOON = 0.02
"""A deadline that a test waits for."""


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


def request_of(body: Body | bytes = b"{}", *, timeout_s: float = 60, **more: object) -> Request:
    """A request that arrives now."""
    now = monotonic()
    settled = {
        "request_id": "r-1",
        "model": "magika",
        "traffic_class": REALTIME,
        "deadline": now + timeout_s,
        "body": body if isinstance(body, Body) else Body.of(body),
        "timeline": Timeline(received=now),
    }
    return Request(**(settled | more))


def asking(backend: Backend, request: Request | None = None) -> asyncio.Task[Reply]:
    """The request on its way."""
    return asyncio.ensure_future(backend.infer(request or request_of()))
