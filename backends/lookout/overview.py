# SPDX-License-Identifier: Apache-2.0
"""What every endpoint is doing now, as a document for people and tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from backends.endpoint import Endpoint
from backends.pool import Pool

__all__ = ["endpoint_document", "pools_document"]


def pools_document(pools: Iterable[Pool], now: float) -> dict[str, Any]:
    """All pools in their order, for GET /v1/pools. now: monotonic seconds."""
    return {
        "pools": [
            {
                "name": pool.name,
                "api": pool.api.value,
                "ready": pool.ready,
                "endpoints": [endpoint_document(each, now) for each in pool.endpoints],
            }
            for pool in pools
        ]
    }


def endpoint_document(endpoint: Endpoint, now: float) -> dict[str, Any]:
    """One endpoint. Times in milliseconds; null is unknown, or nothing in flight."""
    predicted_s = endpoint.prediction.seconds(now)
    oldest_s = endpoint.age(now) if endpoint.in_flight else None
    return {
        "name": endpoint.name,
        "state": endpoint.state(now),
        "zone": endpoint.zone,
        "in_flight": endpoint.in_flight,
        "slots": endpoint.slots,
        "predicted_ms": _milliseconds(predicted_s),
        "oldest_ms": _milliseconds(oldest_s),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
