# SPDX-License-Identifier: Apache-2.0
"""A UDP socket of our own: bounded receive bursts with DSCP and ECN, and sends that never wait.

asyncio's datagram transports give neither ancillary data nor bursts, so the
socket hangs on the loop by its file descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable

__all__ = ["Address", "Receive", "UdpSocket", "bind"]

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the kernel gives it: IP and port, for IPv6 also flow label and scope id."""
Receive = Callable[[bytes, Address, int], None]
"""Datagram, sender, DS-field byte."""

BURST = 64
"""Datagrams read per wake-up, so that timers and replies get their turn (measured best of 16, 64, 256)."""
MAX_DATAGRAM = 65535
SOCKET_BUFFER = 4 << 20
"""The kernel's default of 208 KiB is the first bottleneck of every QUIC server; rmem_max caps this one."""
_ANCILLARY = socket.CMSG_SPACE(4) * 2


class PortInUseError(OSError):
    """The address cannot be bound; the message names it."""


def bind(host: str, port: int) -> socket.socket:
    """A non-blocking UDP socket on one address of one family. Raises OSError with a line for people."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
        if family == socket.AF_INET6:
            # One socket a family: on a dual-stack one, marks of v4 peers need another option.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortInUseError(error.errno, f"cannot listen on udp {host}:{port}: {error.strerror}") from None
    return sock


class UdpSocket:
    """One bound socket on the running loop."""

    def __init__(self, sock: socket.socket, receive: Receive, *, burst_ended: Callable[[], None]) -> None:
        self._sock = sock
        self._receive = receive
        self._burst_ended = burst_ended
        self._buffer = bytearray(MAX_DATAGRAM)
        self._view = memoryview(self._buffer)
        self.received = self.sent = self.send_failures = self.truncated = 0
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    @property
    def address(self) -> Address:
        """Where it is bound."""
        host, port, *_ = self._sock.getsockname()
        return host, port

    def send(self, datagram: bytes, address: Address) -> None:
        """Send or drop: a full socket buffer is congestion, and QUIC's loss recovery repeats what mattered."""
        try:
            self._sock.sendto(datagram, address)
            self.sent += 1
        except (BlockingIOError, InterruptedError):
            self.send_failures += 1
        except OSError as error:
            # ENOBUFS: the device's queue is full. ECONNREFUSED and EHOSTUNREACH: an earlier datagram's ICMP.
            # EPERM: a firewall rule. None of them says anything about this socket.
            if error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise
            self.send_failures += 1

    def close(self) -> None:
        """Off the loop and closed."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        receive, recvmsg_into, view = self._receive, self._sock.recvmsg_into, self._view
        try:
            for _ in range(BURST):  # empty datagrams count too (curl CVE-2026-11352)
                try:
                    size, ancillary, flags, address = recvmsg_into([view], _ANCILLARY)
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as error:
                    if error.errno in (errno.EBADF, errno.ENOTSOCK):
                        raise
                    continue  # a queued ICMP error, reported once
                self.received += 1
                if flags & socket.MSG_TRUNC:
                    self.truncated += 1
                    continue
                receive(bytes(view[:size]), address, _ds_field(ancillary))
        finally:
            self._burst_ended()


def _ds_field(ancillary: list[tuple[int, int, bytes]]) -> int:
    # IP_TOS comes as one byte, IPV6_TCLASS as an int in host order.
    for level, kind, value in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS):
            return value[0]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_TCLASS):
            return int.from_bytes(value[:4], sys.byteorder) & 0xFF
    return 0
