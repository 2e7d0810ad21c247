# SPDX-License-Identifier: Apache-2.0
"""What the probes say: latency by class, losses, and whether the promise held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Figures", "Verdict", "figures", "quantile", "verdict"]

WORST_ADDED_S = 1e-3
"""What a full link may add to the first class's p99: one packet of a lower class on a 20 Mbit/s wire takes 0.6 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One class in one phase."""

    sent: int
    lost: int
    p50_s: float
    p99_s: float
    """nan where nothing arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the classes hold, with the sentences that say why."""

    holds: bool
    reasons: tuple[str, ...]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank); nan of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def figures(sent: int, latencies: Sequence[float]) -> Figures:
    """Of probes sent and the latencies, seconds, of those that arrived."""
    return Figures(
        sent=sent, lost=sent - len(latencies), p50_s=quantile(latencies, 0.5), p99_s=quantile(latencies, 0.99)
    )


def verdict(
    first: str, idle: Mapping[str, Figures], without: Mapping[str, Figures], planned: Mapping[str, Figures]
) -> Verdict:
    """first: the class that is served first. The three phases: an idle link, a full one, a full one under the plan."""
    added = planned[first].p99_s - idle[first].p99_s
    reasons = [
        f"{first}: p99 {1e3 * added:+.2f} ms above the idle link's under the plan, "
        f"{1e3 * (without[first].p99_s - idle[first].p99_s):+.1f} ms without it",
        f"{first}: {planned[first].lost} of {planned[first].sent} lost under the plan, "
        f"{without[first].lost} of {without[first].sent} without it",
    ]
    # A link that was not full proves nothing.
    full = without[first].p99_s - idle[first].p99_s > 2 * WORST_ADDED_S or without[first].lost > 0
    if not full:
        reasons.append("the flood did not fill the link: this machine is too slow for the test; nothing is proved")
    holds = full and added <= WORST_ADDED_S and planned[first].lost == 0
    return Verdict(holds=holds, reasons=tuple(reasons))
