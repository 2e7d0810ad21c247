# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells beside a datagram, read once for each thing that it says. No I/O.

Packet after packet it says the same, so its bytes are the key to what they mean.
"""

from __future__ import annotations

import socket
import sys
from typing import NamedTuple

from proxy.sockets.linux import IP_PKTINFO, SO_RXQ_OVFL, SOL_UDP, UDP_GRO
from qos.marking import Ancillary, received_ds_field

__all__ = ["ANCILLARY_BYTES", "AncillaryReader", "Told"]

ANCILLARY_BYTES = socket.CMSG_SPACE(4) * 4 + socket.CMSG_SPACE(20)
"""DS field (twice on a dual-stack socket), segment size, drops; our own address."""
_MOST_KNOWN = 1024
_LINK_LOCAL = b"\xfe\x80"


class Told(NamedTuple):
    """What one message came with."""

    ds_field: int = 0
    segment: int = 0
    """Bytes of each datagram in it but the last; 0: it is one datagram."""
    drops: int | None = None
    """Datagrams that this socket's full buffer has cost since it was made; None: the kernel did not say."""
    source: Ancillary | None = None
    """What makes a reply leave from the address that this came to, where the socket asked for it."""


class AncillaryReader:
    """Reads, and remembers what it has read, within a bound."""

    def __init__(self) -> None:
        self._known: dict[tuple[Ancillary, ...], Told] = {}

    def read(self, parts: list[Ancillary]) -> Told:
        """What these parts say. Never raises."""
        key = tuple(parts)
        told = self._known.get(key)
        if told is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            told = self._known[key] = _read(parts)
        return told


def _read(parts: list[Ancillary]) -> Told:
    segment, drops, source = 0, None, None
    for level, kind, value in parts:
        if (level, kind) == (SOL_UDP, UDP_GRO):
            segment = int.from_bytes(value, sys.byteorder)
        elif (level, kind) == (socket.SOL_SOCKET, SO_RXQ_OVFL):
            drops = int.from_bytes(value, sys.byteorder)
        elif (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(value) == 12:
            # struct in_pktinfo: interface, our address, the packet's destination. The route chooses the interface.
            source = (level, kind, bytes(4) + value[4:8] + bytes(4))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(value) == 20:
            # struct in6_pktinfo: our address, interface; a link-local address means nothing without the latter.
            source = (level, kind, value if value.startswith(_LINK_LOCAL) else value[:16] + bytes(4))
    return Told(received_ds_field(parts), segment, drops, source)
