# SPDX-License-Identifier: Apache-2.0
"""The numbers of a shaped link: bursts, turns, queues and trains, each with its reason.

Rates in bytes per second, sizes in bytes as the kernel counts them (with the Ethernet header, without what the wire
adds), times in the unit of the option.
"""

from __future__ import annotations

import math

import msgspec

from qos.tc.state import TICK_NS, Bfifo, FqCodel, HtbClass, Tbf

__all__ = [
    "ETHERNET_HEADER",
    "TRAIN_S",
    "Link",
    "bfifo",
    "byte_rate",
    "fq_codel",
    "htb_class",
    "is_slow",
    "least_queue",
    "longest_train",
    "splitter",
]

ETHERNET_HEADER = 14
_BURST_S = 1e-3
"""What a class that was silent may send at once: as long as the kernel's timers are late at worst, or it loses rate."""
TRAIN_S = 0.5e-3
"""Longest a train of packets may hold the link: a 43-packet train cost a realtime probe 24 ms at 20 Mbit/s."""
_LEAST_RATE = 1000
"""Bytes per second of a link: 8 kbit/s, below which one packet takes seconds."""
_LONGEST_DEBT_S = 60
"""HTB forgets what a class owes beyond (mbuffer in net/sched/sch_htb.c), so no packet may take longer at its rate."""
_MOST_RATE = 2**60
_GSO_MAX = 65536
_SPLITTER_RATE = 4_000_000_000
"""Bytes per second: a packet's time at this rate is 0.4 us, which no link slow enough to need splitting can notice."""
_TAG = 32
"""Bytes of tags that a packet may carry beyond its Ethernet header."""
_LEAST_PACKETS = 16
_CODEL_TARGET_S, _CODEL_INTERVAL_S = 5e-3, 100e-3  # RFC 8289 section 4.4
_U32_MAX = 2**32 - 1


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers depend on."""

    rate: int
    mtu: int
    overhead: int
    """What the wire adds to each packet."""
    gso_max_size: int
    """The longest train that the stack hands over."""
    split: bool = False
    """Whether trains are cut into packets before they queue."""
    trains: bool = True
    """Whether a queue must hold a whole train."""

    @property
    def packet(self) -> int:
        """The longest packet."""
        return self.mtu + ETHERNET_HEADER


def byte_rate(bits_per_s: float) -> int:
    """Bits per second -> bytes per second, within what HTB can keep."""
    return min(max(_LEAST_RATE, int(bits_per_s) // 8), _MOST_RATE)


def htb_class(link: Link, *, share: float, ceiling: float, prio: int) -> HtbClass:
    """A class with its part of the link."""
    rate = max(link.packet // _LONGEST_DEBT_S + 1, int(link.rate * share))
    ceil = max(rate, int(link.rate * ceiling))
    return HtbClass(
        rate=rate,
        ceil=ceil,
        burst=_burst(link, rate),
        cburst=_burst(link, ceil),
        prio=prio,
        quantum=_quantum(link, rate),
        overhead=link.overhead,
    )


def _burst(link: Link, rate: int) -> int:
    """In ticks. Less than one packet, and HTB would never reach its rate."""
    size = max(rate * _BURST_S, link.packet + link.overhead)
    return min(math.ceil(size * 1e9 / rate / TICK_NS), _U32_MAX)


def _quantum(link: Link, rate: int) -> int:
    """Turns in proportion to the rates, at least a packet each, at most what tc's own default allows (sch_htb.c)."""
    return min(max(link.packet, int(rate * _BURST_S)), max(60_000, link.packet))


def _queue(link: Link, rate: int, queue_s: float) -> int:
    """A queue of so much time at the guaranteed rate, and room for what comes at once."""
    return min(max(int(rate * queue_s), least_queue(link)), _U32_MAX)


def is_slow(rate: int) -> bool:
    """Whether a train of 64 KiB would hold the link for longer than TRAIN_S."""
    return rate * TRAIN_S < _GSO_MAX


def splitter(link: Link, rate: int, queue_s: float) -> Tbf:
    """The leaf that cuts trains into packets (tbf_segment() in net/sched/sch_tbf.c), with a queue of bytes in it.

    HTB sends a train as one: 40 packets of bulk cost a realtime probe 18.7 ms on a 20 Mbit/s hop, cut up 0.1 ms
    (`python -m benchmarks.link`). gso_max_size would not help: UDP_SEGMENT and forwarded trains do not heed it.
    """
    ticks = math.ceil((link.packet + _TAG) * 1e9 / _SPLITTER_RATE / TICK_NS)
    return Tbf(rate=_SPLITTER_RATE, burst=ticks, limit=_queue(link, rate, queue_s))


def least_queue(link: Link) -> int:
    """What a queue must hold: one train, or it throws away all that some senders send.

    UDP's trains (UDP_SEGMENT) are up to 64 KiB whatever gso_max_size says.
    """
    if not link.trains:
        return _LEAST_PACKETS * link.packet
    return max(link.gso_max_size, _GSO_MAX) + link.packet


def bfifo(link: Link, rate: int, queue_s: float) -> Bfifo:
    """The simple queue."""
    return Bfifo(limit=_queue(link, rate, queue_s))


def fq_codel(link: Link, rate: int, queue_s: float) -> FqCodel:
    """The queue that also keeps flows of one class apart."""
    size = _queue(link, rate, queue_s)
    # RFC 8289 section 4.4: a target below the time of one packet would mark all of them.
    target_s = max(_CODEL_TARGET_S, 1.5 * link.packet / rate)
    interval_s = max(_CODEL_INTERVAL_S, target_s * _CODEL_INTERVAL_S / _CODEL_TARGET_S)
    return FqCodel(
        limit=min(max(size // 256, 64), 10240),  # for small packets; 10240 is the kernel's default
        target=min(int(target_s * 1e6), _U32_MAX),
        interval=min(int(interval_s * 1e6), _U32_MAX),
        quantum=link.packet,
        # The kernel counts its own structures too: about as much again for a packet of 1,500 bytes.
        memory_limit=min(2 * size, _U32_MAX),
        ecn=True,
    )


def longest_train(link: Link, *, ours: bool) -> int | None:
    """Bytes that gso_max_size shall be; None where it may stay, and is not ours to set.

    ours: whether we shape this device already, so that the present size may be one that we set.
    """
    if link.split:
        return None
    allowed = max(link.packet, int(link.rate * TRAIN_S))
    if allowed < link.gso_max_size:
        return allowed
    return min(allowed, _GSO_MAX) if ours and link.gso_max_size < _GSO_MAX else None
