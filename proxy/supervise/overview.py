# SPDX-License-Identifier: Apache-2.0
"""What several workers know of the same endpoints, as one document. Pure.

Each worker learns by its own requests, so they may differ for some seconds. An endpoint's state is the one that most of
them see, of as many the worst; where they do not all see the same, `states` says who sees what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["merged_endpoint", "merged_pools"]

_WORST_FIRST = ("ejected", "draining", "loading", "probing", "healthy")

_Document = dict[str, Any]


def merged_pools(told: Mapping[str, _Document], silent: Sequence[str] = ()) -> _Document:
    """GET /v1/pools of all workers. told: each one's, by its name; silent: those that did not answer, if any."""
    pools: dict[str, dict[str, _Document]] = {}
    for worker, document in told.items():
        for pool in document["pools"]:
            pools.setdefault(pool["name"], {})[worker] = pool
    merged: _Document = {"pools": [_pool(by_worker) for by_worker in pools.values()]}
    return merged | {"silent": list(silent)} if silent else merged


def merged_endpoint(told: Mapping[str, _Document]) -> _Document:
    """One endpoint as those workers know it that have it, one at least: counts are sums, times the longest, and the
    expected time is the mean."""
    each = list(told.values())
    states = {worker: one["state"] for worker, one in told.items()}
    document = each[0] | {
        "state": _state(list(states.values())),
        "in_flight": sum(one["in_flight"] for one in each),
        "slots": max(one["slots"] for one in each),  # a limit that all of them keep together
        "predicted_ms": _mean([one["predicted_ms"] for one in each if one["predicted_ms"] is not None]),
        "oldest_ms": max((one["oldest_ms"] for one in each if one["oldest_ms"] is not None), default=None),
    }
    return document | {"states": states} if len(set(states.values())) > 1 else document


def _pool(told: Mapping[str, _Document]) -> _Document:
    endpoints: dict[str, dict[str, _Document]] = {}
    for worker, pool in told.items():
        for endpoint in pool["endpoints"]:
            endpoints.setdefault(endpoint["name"], {})[worker] = endpoint
    merged = []
    for by_worker in endpoints.values():
        document = merged_endpoint(by_worker)
        if len(by_worker) < len(told):  # names are looked up by each of them
            document["known_to"] = list(by_worker)
        merged.append(document)
    first = next(iter(told.values()))
    return first | {"ready": all(pool["ready"] for pool in told.values()), "endpoints": merged}


def _state(states: Sequence[str]) -> str:
    counts = Counter(states)
    return max(counts, key=lambda state: (counts[state], -_WORST_FIRST.index(state)))


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 3) if values else None
