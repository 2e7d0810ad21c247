# SPDX-License-Identifier: Apache-2.0
"""Counters of qdiscs and classes: as the kernel tells them, and how much they grew (linux/gen_stats.h)."""

from __future__ import annotations

import struct

import msgspec

from qos.tc.kernel.attributes import nested_attributes, read_u64

__all__ = ["Counters", "grown", "parse_counters"]

_BASIC, _QUEUE, _APP, _PACKETS64 = 1, 3, 4, 8
_BASIC_STRUCT = struct.Struct("=QI")  # bytes, packets: the latter's low half
_QUEUE_STRUCT = struct.Struct("=5I")  # qlen, backlog, drops, requeues, overlimits
_HTB_STRUCT = struct.Struct("=II")  # struct tc_htb_xstats begins with lends, borrows
_WRAP = 2**32


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What passed one qdisc or class since it was made, and what waits in it now."""

    bytes: int = 0
    packets: int = 0
    drops: int = 0
    overlimits: int = 0
    """How often it had to wait for its rate."""
    backlog_bytes: int = 0
    backlog_packets: int = 0
    lends: int = 0
    """Packets that an HTB class sent from its own guarantee."""
    borrows: int = 0
    """Packets that it sent from its parent's."""


def parse_counters(kind: str, stats: bytes | None, *, of_class: bool) -> Counters:
    """The value of TCA_STATS2."""
    found = nested_attributes(stats)
    octets, packets = _unpacked(_BASIC_STRUCT, found.get(_BASIC))
    waiting, waiting_bytes, drops, _, overlimits = _unpacked(_QUEUE_STRUCT, found.get(_QUEUE))
    lends, borrows = _unpacked(_HTB_STRUCT, found.get(_APP) if kind == "htb" and of_class else None)
    return Counters(
        bytes=octets,
        packets=read_u64(found.get(_PACKETS64), packets),
        drops=drops,
        overlimits=overlimits,
        backlog_bytes=waiting_bytes,
        backlog_packets=waiting,
        lends=lends,
        borrows=borrows,
    )


def grown(before: Counters | None, now: Counters) -> Counters:
    """What was counted between two readings; what waits is as it is now.

    Bytes have 64 bits and only grow, so fewer of them mean a new object, which began at 0. The others have 32 bits in
    the kernel and start again at 0 when full.
    """
    if before is None or now.bytes < before.bytes:
        return now
    return Counters(
        bytes=now.bytes - before.bytes,
        packets=_wrapped(before.packets, now.packets),
        drops=_wrapped(before.drops, now.drops),
        overlimits=_wrapped(before.overlimits, now.overlimits),
        backlog_bytes=now.backlog_bytes,
        backlog_packets=now.backlog_packets,
        lends=_wrapped(before.lends, now.lends),
        borrows=_wrapped(before.borrows, now.borrows),
    )


def _wrapped(before: int, now: int) -> int:
    return now - before if now >= before else (now - before) % _WRAP


def _unpacked(layout: struct.Struct, value: bytes | None) -> tuple[int, ...]:
    if value is None or len(value) < layout.size:
        return layout.unpack(bytes(layout.size))
    return layout.unpack_from(value)
