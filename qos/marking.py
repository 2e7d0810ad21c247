# SPDX-License-Identifier: Apache-2.0
"""How Linux is told the mark of a packet: socket options and ancillary data in the order that works. No I/O.

The order matters on IPv4: setting IP_TOS overwrites the socket's priority, and IP_TOS as ancillary data that of the
packet (`ip_sock_set_tos`, `ip_cmsg_send` in net/ipv4/ip_sockglue.c). So the DS field comes first, the priority last.
"""

from __future__ import annotations

import socket
import sys
from typing import NamedTuple

from qos.dscp import ds_field as ds_field_of
from qos.traffic_class import TrafficClass, queue_priority

__all__ = [
    "UNMARKED",
    "Ancillary",
    "Mark",
    "Option",
    "ancillary",
    "mark_of",
    "received_ds_field",
    "socket_options",
    "usual_priority",
]

Option = tuple[int, int, int]
"""Level, name and value, as setsockopt takes them."""
Ancillary = tuple[int, int, bytes]
"""Level, type and value, as sendmsg takes them."""

# From asm-generic/socket.h and linux/in6.h, where Python's build did not see them.
_SO_PRIORITY = getattr(socket, "SO_PRIORITY", 12)
_IPV6_TCLASS = getattr(socket, "IPV6_TCLASS", 67)


class Mark(NamedTuple):
    """What a packet carries for the queues on its way."""

    dscp: int
    """0..63, for the network."""
    priority: int = 0
    """0..6, for this machine's own queues (SO_PRIORITY); more would need CAP_NET_ADMIN."""


UNMARKED = Mark(0)
_FIRST_REALTIME = 32
"""CS4: from here on RFC 4594 section 2 puts real-time traffic, and RFC 2474 section 4.2.2.2 the higher precedence."""


def mark_of(traffic_class: TrafficClass) -> Mark:
    """The mark of a class's packets, as it is configured now."""
    return Mark(traffic_class.dscp, traffic_class.priority)


def usual_priority(dscp: int) -> int:
    """The priority of packets whose DSCP is all that is known of them, for queues with three bands (pfifo_fast).

    The kernel's own choice follows the TOS bits of RFC 1349: it puts AF21 into the lowest band, below LE.
    """
    rank = 0 if dscp >= _FIRST_REALTIME else 2  # above or below a default class of rank 1
    return queue_priority(rank, 1, dscp)


def socket_options(family: int, mark: Mark) -> list[Option]:
    """What marks everything that a socket sends from now on; nothing for a Unix socket.

    An IPv6 socket gets both fields: towards an IPv4-mapped peer it sends IPv4 packets, whose field IPV6_TCLASS does
    not reach. The kernel keeps the ECN bits of a TCP connection; those of a datagram are 0 here.
    """
    return [
        *((level, name, ds_field_of(mark.dscp)) for level, name in _fields(family)),
        *([(socket.SOL_SOCKET, _SO_PRIORITY, mark.priority)] if _fields(family) else ()),
    ]


def ancillary(family: int, ds_field: int, priority: int | None = None) -> list[Ancillary]:
    """What marks one datagram. priority: None where the kernel refuses it (EINVAL before Linux 6.14)."""
    parts = [(level, kind, _integer(ds_field)) for level, kind in _fields(family)]
    if priority is not None:
        parts.append((socket.SOL_SOCKET, _SO_PRIORITY, _integer(priority)))
    return parts


def received_ds_field(parts: list[Ancillary]) -> int:
    """The DS field that a packet came with, where IP_RECVTOS or IPV6_RECVTCLASS asked for it; else 0."""
    for level, kind, value in parts:
        if (level, kind) in ((socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, _IPV6_TCLASS)):
            # One byte, or an int in host order whose lowest byte it is.
            return value[0] if len(value) == 1 else int.from_bytes(value[:4], sys.byteorder) & 0xFF
    return 0


def _fields(family: int) -> tuple[tuple[int, int], ...]:
    if family == socket.AF_INET:
        return ((socket.IPPROTO_IP, socket.IP_TOS),)
    if family == socket.AF_INET6:
        return ((socket.IPPROTO_IPV6, _IPV6_TCLASS), (socket.IPPROTO_IP, socket.IP_TOS))
    return ()


def _integer(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)
