# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of looking after endpoints besides requests: probes, and look-ups that told nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from proxy.telemetry.families import Family

__all__ = ["DiscoveryCounts", "ProbeCounts", "discovery_families", "probe_families"]


class ProbeCounts(Protocol):
    """Probes so far."""

    @property
    def counts(self) -> Mapping[tuple[str, bool], int]:
        """By (pool, whether it succeeded)."""
        ...


class DiscoveryCounts(Protocol):
    """Looking for endpoints, so far."""

    @property
    def failures(self) -> Mapping[tuple[str, str], int]:
        """Look-ups and readings that told nothing, by (pool, source): a fixed list of sources."""
        ...


def probe_families(probing: ProbeCounts) -> Iterator[Family]:
    """Of all pools that are probed."""
    probes = Family("inferlane_probes", "Probes of endpoints, by how they ended.", ("pool", "result"), True)
    for (pool, succeeded), count in probing.counts.items():
        probes.samples.append(((pool, "ok" if succeeded else "failed"), count))
    yield probes


def discovery_families(discovery: DiscoveryCounts) -> Iterator[Family]:
    """Of all pools whose endpoints are looked for."""
    failures = Family(
        "inferlane_discovery_failures", "Look-ups and readings that told nothing.", ("pool", "source"), True
    )
    failures.samples.extend(discovery.failures.items())
    yield failures
