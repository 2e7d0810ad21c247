# SPDX-License-Identifier: Apache-2.0
"""What a request that gets no place is told: the reason, one sentence that says what to do, and when to come back."""

from __future__ import annotations

from backends.messages import Request
from inferlane.errors import Reason, Refused

__all__ = ["crowded", "displaced", "evicted", "full", "no_endpoint", "queue_timeout", "too_late", "waited_out"]

# Nothing tells when an endpoint will be ready again; often enough to notice, seldom enough to be harmless.
_RETRY_NO_ENDPOINT_S = 1.0


def no_endpoint(pool: str) -> Refused:
    """Nobody could answer, now or later."""
    return Refused(Reason.NO_ENDPOINT, f"no endpoint of pool {pool} is ready", retry_after_s=_RETRY_NO_ENDPOINT_S)


def waited_out(pool: str) -> Refused:
    """The deadline came first."""
    return Refused(Reason.DEADLINE, f"the deadline passed while waiting for a place in pool {pool}")


def queue_timeout(pool: str, request: Request, retry_after_s: float) -> Refused:
    """It waited as long as its class does."""
    wait = f"the {request.traffic_class.queue_s:g} s that class {request.traffic_class.name} waits"
    return Refused(
        Reason.QUEUE_TIMEOUT, f"no place in pool {pool} came free within {wait}", retry_after_s=retry_after_s
    )


def too_late(pool: str, request: Request, now: float, expected_s: float | None) -> Refused:
    """What is left of its time is less than an answer takes."""
    left_ms, rtt_ms = max(0.0, request.deadline - now) * 1e3, (request.timeline.rtt_s or 0.0) * 1e3
    takes = f"pool {pool} takes {(expected_s or 0.0) * 1e3:.0f} ms and the client's round trip {rtt_ms:.0f} ms"
    return Refused(Reason.TOO_LATE, f"{left_ms:.0f} ms are left, but {takes}: the answer would be late")


def full(pool: str, request: Request, waiting: str, retry_after_s: float) -> Refused:
    """The queue's bounds are reached. waiting: who waits already, in words."""
    size = max(request.body.received, request.body.declared or 0)
    return Refused(
        Reason.QUEUE_FULL,
        f"{waiting} wait for pool {pool} already, and one of {size} bytes is too many",
        retry_after_s=retry_after_s,
    )


def crowded(pool: str, request: Request, retry_after_s: float) -> Refused:
    """It waited, and had to go for a client of its class that has less in the queue."""
    most = f"no client has more requests of class {request.traffic_class.name} in it than {request.client}"
    return Refused(Reason.QUEUE_FULL, f"the queue of pool {pool} is full, and {most}", retry_after_s=retry_after_s)


def displaced(pool: str, request: Request, retry_after_s: float) -> Refused:
    """It waited, and had to go for a higher class."""
    detail = f"the queue of pool {pool} is full, and a higher class than {request.traffic_class.name} came"
    return Refused(Reason.EVICTED, detail, retry_after_s=retry_after_s)


def evicted(pool: str, class_name: str) -> Refused:
    """It was served, and had to go for a higher class."""
    detail = f"class {class_name} is sheddable, and a higher class had no place in pool {pool}"
    return Refused(Reason.EVICTED, detail, retry_after_s=1.0)
