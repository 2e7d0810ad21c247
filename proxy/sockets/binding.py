# SPDX-License-Identifier: Apache-2.0
"""A UDP socket bound to an address, asking the kernel for all that it can tell and for as much room as it gives."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from functools import cache

import structlog

from proxy.sockets.linux import IP_PKTINFO, SO_RCVBUFFORCE, SO_RXQ_OVFL, SOL_UDP, UDP_GRO, UDP_SEGMENT
from qos.marking import ancillary

__all__ = ["SOCKET_BUFFER", "PortInUseError", "bind", "cuts_trains", "marks_packets"]

SOCKET_BUFFER = 4 << 20
"""The kernel's default of 208 KiB is the first bottleneck of every QUIC server: 90 full packets as it counts them."""
_WILDCARDS = ("", "0.0.0.0", "::")
_log = structlog.get_logger("inferlane.sockets")


class PortInUseError(OSError):
    """The address cannot be bound; the message names it."""


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A non-blocking UDP socket on one address of one family. Raises OSError with a line for people.

    shared: others of this user may bind it too, and the kernel shares out what comes (SO_REUSEPORT).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        _ask_for_room(sock)
        _ask_to_be_told(sock, wildcard=host in _WILDCARDS)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortInUseError(error.errno, f"cannot listen on udp {host}:{port}: {error.strerror}") from None
    return sock


@cache
def marks_packets() -> bool:
    """Whether this kernel takes a priority with a packet (Linux 6.14), or only with a socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        try:
            # To itself; priority 0 needs no capability.
            sock.sendmsg([b""], ancillary(socket.AF_INET, 0, 0), 0, ("127.0.0.1", sock.getsockname()[1]))
        except OSError as error:
            return error.errno != errno.EINVAL  # where loopback is down it was taken, too: it is read before the route
    return True


def cuts_trains(sock: socket.socket) -> bool:
    """Whether the kernel cuts one message into datagrams (Linux 4.18). One that does not would send it whole."""
    try:
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
    except OSError:
        return False
    return True


def _ask_for_room(sock: socket.socket) -> None:
    """Beyond net.core.rmem_max where that is permitted (CAP_NET_ADMIN), else up to it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    given = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # it doubles them, for its own bookkeeping
    if given < SOCKET_BUFFER:
        _warn(given)


@cache
def _warn(given: int) -> None:
    """Once, however many sockets there are."""
    _log.warning(
        "small_receive_buffer",
        given=given,
        wanted=SOCKET_BUFFER,
        remedy=f"sysctl -w net.core.rmem_max={SOCKET_BUFFER}, or the gateway drops datagrams in bursts",
    )


def _ask_to_be_told(sock: socket.socket, *, wildcard: bool) -> None:
    """The DS field of what comes, what a full buffer has cost, and our own address where it may be one of several."""
    if sock.family == socket.AF_INET6:
        # One socket a family: on a dual-stack one, marks of v4 peers need another option.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        if wildcard:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        if wildcard:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    for level, option in ((socket.SOL_SOCKET, SO_RXQ_OVFL), (SOL_UDP, UDP_GRO)):
        with suppress(OSError):  # a kernel that cannot has nothing to tell: it counts nothing, and joins nothing
            sock.setsockopt(level, option, 1)
