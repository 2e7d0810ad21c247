# SPDX-License-Identifier: Apache-2.0
"""A UDP socket of our own: bounded receive bursts with DSCP and ECN, and marked sends that never wait.

asyncio's datagram transports give neither ancillary data nor bursts, so the
socket hangs on the loop by its file descriptor.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from functools import cache

from qos.dscp import ds_field
from qos.marking import UNMARKED, Ancillary, Mark, ancillary, received_ds_field, socket_options

__all__ = ["Address", "Receive", "UdpSocket", "bind", "marks_packets"]

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


class UdpSocket:
    """One bound socket on the running loop.

    mark: what most of its datagrams carry. per_packet: False where the kernel takes no priority with a packet: then the
    socket is re-marked when the mark changes. A second socket would tear a connection's packets apart.
    """

    def __init__(
        self,
        sock: socket.socket,
        receive: Receive,
        *,
        burst_ended: Callable[[], None],
        mark: Mark = UNMARKED,
        per_packet: bool | None = None,
    ) -> None:
        self._sock = sock
        self._per_packet = marks_packets() if per_packet is None else per_packet
        self._ancillary: dict[Mark, list[Ancillary]] = {}
        self._mark(mark)
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

    def send(self, datagram: bytes, address: Address, mark: Mark = UNMARKED) -> None:
        """Send or drop: a full socket buffer is congestion, and QUIC's loss recovery repeats what mattered."""
        try:
            if mark == self._marked or not self._per_packet:
                if mark != self._marked:
                    self._mark(mark)
                self._sock.sendto(datagram, address)
            else:
                self._sock.sendmsg((datagram,), self._ancillary_of(mark), 0, address)
            self.sent += 1
        except (BlockingIOError, InterruptedError):
            self.send_failures += 1
        except OSError as error:
            # ENOBUFS: the device's queue is full. ECONNREFUSED and EHOSTUNREACH: an earlier datagram's ICMP.
            # EPERM: a firewall rule. None of them says anything about this socket.
            if error.errno in (errno.EBADF, errno.ENOTSOCK):
                raise
            self.send_failures += 1

    def send_all(self, datagrams: Sequence[bytes], address: Address, mark: Mark = UNMARKED) -> None:
        """Datagrams to one address under one mark, in this order; each is sent or dropped like by `send`."""
        for datagram in datagrams:
            self.send(datagram, address, mark)

    def close(self) -> None:
        """Off the loop and closed."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()

    def _mark(self, mark: Mark) -> None:
        for option in socket_options(self._sock.family, mark):
            self._sock.setsockopt(*option)
        self._marked = mark

    def _ancillary_of(self, mark: Mark) -> list[Ancillary]:
        parts = self._ancillary.get(mark)
        if parts is None:
            parts = self._ancillary[mark] = ancillary(self._sock.family, ds_field(mark.dscp), mark.priority)
        return parts

    def _readable(self) -> None:
        receive, recvmsg_into, view = self._receive, self._sock.recvmsg_into, self._view
        try:
            for _ in range(BURST):  # empty datagrams count too (curl CVE-2026-11352)
                try:
                    size, parts, flags, address = recvmsg_into([view], _ANCILLARY)
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
                receive(bytes(view[:size]), address, received_ds_field(parts))
        finally:
            self._burst_ended()
