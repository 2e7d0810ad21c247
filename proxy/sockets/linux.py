# SPDX-License-Identifier: Apache-2.0
"""Numbers of Linux's socket interface that Python's socket module does not have."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["IPV6_TCLASS", "IP_PKTINFO", "SOL_UDP", "SO_RCVBUFFORCE", "SO_RXQ_OVFL", "UDP_GRO", "UDP_SEGMENT"]

SOL_UDP: Final = socket.IPPROTO_UDP
# linux/udp.h
UDP_SEGMENT: Final = 103  # since 4.18: the kernel cuts one message into datagrams of this size
UDP_GRO: Final = 104  # since 5.0: datagrams of one sender and one size may come as one message
# linux/in.h and linux/in6.h
IP_PKTINFO: Final = 8
IPV6_TCLASS: Final = getattr(socket, "IPV6_TCLASS", 67)
# asm-generic/socket.h
SO_RCVBUFFORCE: Final = 33
SO_RXQ_OVFL: Final = 40
