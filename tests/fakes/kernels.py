# SPDX-License-Identifier: Apache-2.0
"""Kernels and links as the deciding modules see them."""

from __future__ import annotations

from typing import Any

from qos.tc.capabilities import Capabilities, LinkFacts

__all__ = ["FULL", "SMALL", "link_facts"]

_QDISC = "Specified qdisc kind is unknown"
_CLASSIFIER = "TC classifier not found"

FULL = Capabilities(
    kernel="6.12",
    qdiscs=dict.fromkeys(("htb", "fq_codel", "bfifo", "tbf", "cake", "ets", "fq"), ""),
    classifiers=dict.fromkeys(("bpf", "flower", "u32", "matchall"), ""),
    actions=dict.fromkeys(("mirred", "skbedit"), ""),
    ifb="",
    clsact="",
    per_packet_priority=True,
    fq_bands=True,
)
"""A distribution's."""

SMALL = Capabilities(
    kernel="6.18",
    qdiscs={"htb": "", "bfifo": "", "tbf": "", **dict.fromkeys(("fq_codel", "cake", "ets", "fq"), _QDISC)},
    classifiers={"bpf": "", "u32": "", **dict.fromkeys(("flower", "matchall"), _CLASSIFIER)},
    actions={"mirred": "", "skbedit": "Failed to load TC action module"},
    ifb="",
    clsact="",
    per_packet_priority=True,
)
"""HTB, TBF, u32, bpf and mirred alone."""


def link_facts(name: str = "eth0", **more: Any) -> LinkFacts:
    """An Ethernet device that is up."""
    known: dict[str, Any] = {"index": 2, "up": True, "mtu": 1500, "tx_queues": 1, "gso_max_size": 65536}
    return LinkFacts(name=name, **(known | more))
