# SPDX-License-Identifier: Apache-2.0
"""The mark that a TCP connection's packets came with, and the one that ours carry.

The kernel tells marks by datagram only. Of a TCP connection it keeps the DS field of the packet that opened it (IPv4)
or that came last (IPv6), and hands it out like ancillary data (IP_PKTOPTIONS in net/ipv4/ip_sockglue.c,
IPV6_2292PKTOPTIONS in net/ipv6/ipv6_sockglue.c).
"""

from __future__ import annotations

import socket
import struct
from functools import cache
from typing import Protocol, overload

from qos.dscp import dscp_of
from qos.marking import Mark, Option, received_ds_field, socket_options, usual_priority

__all__ = ["Marked", "arrived_ds_field", "carry", "listen_for_marks", "reflected"]

# linux/in.h and linux/in6.h; Python has no names for them.
_PACKET_OPTIONS: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 9),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 6),
}
_IP_RECVTOS = 13
_IPV6_RECVTCLASS = 66
_WANTED: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, _IP_RECVTOS),
    socket.AF_INET6: (socket.IPPROTO_IPV6, _IPV6_RECVTCLASS),
}
_HEADER = struct.Struct("@Nii")  # struct cmsghdr: length, level, type
_ROOM = 64


class Marked(Protocol):
    """As much of a socket as asyncio's and uvloop's transports show."""

    @property
    def family(self) -> int: ...

    @overload
    def getsockopt(self, level: int, name: int, /) -> int: ...

    @overload
    def getsockopt(self, level: int, name: int, length: int, /) -> bytes: ...

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


def listen_for_marks(sock: socket.socket) -> None:
    """Have the kernel keep the marks of a listening socket's connections; they inherit it."""
    if (wanted := _WANTED.get(sock.family)) is not None:
        sock.setsockopt(*wanted, 1)


def arrived_ds_field(sock: Marked) -> int:
    """The DS field of this connection's packets; 0 where the kernel does not say, and of a Unix socket."""
    option = _PACKET_OPTIONS.get(sock.family)
    if option is None:
        return 0
    try:
        told = sock.getsockopt(*option, _ROOM)
    except OSError:  # gone already, or no Linux
        return 0
    if len(told) < _HEADER.size:
        return 0
    length, level, kind = _HEADER.unpack_from(told)
    return received_ds_field([(level, kind, told[_HEADER.size : length])])


def carry(sock: Marked, mark: Mark) -> None:
    """Have what this connection sends from now on carry a mark; the kernel keeps the ECN bits."""
    options = _options(sock.family, mark)
    if not options:
        return
    (*field, _), (*priority, wanted) = options[0], options[-1]
    try:
        # An accepted connection inherits its listener's field, or with tcp_reflect_tos the peer's, but no priority.
        if dscp_of(sock.getsockopt(*field)) != mark.dscp or sock.getsockopt(*priority) != wanted:
            for option in options:
                sock.setsockopt(*option)
    except OSError:
        pass  # gone, and its request will be told so; or a kernel that refuses marks: replies travel without


def reflected(ds_field: int) -> Mark:
    """The mark of replies that go back under the DSCP that came."""
    dscp = dscp_of(ds_field)
    return Mark(dscp, usual_priority(dscp))


@cache
def _options(family: int, mark: Mark) -> list[Option]:
    return socket_options(family, mark)
