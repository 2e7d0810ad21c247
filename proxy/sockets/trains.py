# SPDX-License-Identifier: Apache-2.0
"""Which datagrams go to the kernel as one message, to be cut by it or by the network card (UDP_SEGMENT). Pure.

A train goes through a queue as one: whatever is more urgent waits for all of it. On a link of 20 Mbit/s, trains of 43
took the p99 of an urgent packet from 0.65 to 24 ms. So a train lasts at most half a millisecond where it is slowest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["MOST_BYTES", "MOST_SEGMENTS", "UNKNOWN_RATE_SEGMENTS", "train_segments", "trains"]

MOST_SEGMENTS = 64
"""UDP_MAX_SEGMENTS of linux/udp.h before 6.2; later kernels take 128."""
MOST_BYTES = 65_507
"""An IPv4 packet's 65,535 without its IP and UDP headers."""
UNKNOWN_RATE_SEGMENTS = 16
"""Where no egress rate is configured: 0.16 ms at 1 Gbit/s, and most of what trains save (docs/performance.md)."""
_LONGEST_S = 0.5e-3
_HEADERS = 14 + 40 + 8  # Ethernet, IPv6, UDP


def train_segments(packet_bytes: int, slowest_bps: float | None) -> int:
    """How many datagrams of so many bytes may go at once. slowest_bps: of the configured egress rates, if there are."""
    fit = min(MOST_SEGMENTS, MOST_BYTES // max(packet_bytes, 1))
    if slowest_bps is None:
        return max(1, min(fit, UNKNOWN_RATE_SEGMENTS))
    return max(1, min(fit, int(slowest_bps * _LONGEST_S / 8 / (packet_bytes + _HEADERS))))


def trains(datagrams: Sequence[bytes], slowest_bps: float | None) -> Iterator[Sequence[bytes]]:
    """The datagrams in their order, cut where a train ends: all are as long as its first, but the last may be shorter.

    An empty one never joins: the kernel would not send it.
    """
    start, end = 0, len(datagrams)
    while start < end:
        size = len(datagrams[start])
        stop, last = start + 1, min(end, start + train_segments(size, slowest_bps)) if size else start + 1
        while stop < last and len(datagrams[stop]) == size:
            stop += 1
        if stop < last and 0 < len(datagrams[stop]) < size:
            stop += 1
        yield datagrams[start:stop]
        start = stop
