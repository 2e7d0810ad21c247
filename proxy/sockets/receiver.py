# SPDX-License-Identifier: Apache-2.0
"""Reads a UDP socket in bounded bursts; the kernel may hand over a train of one sender's datagrams as one message."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from time import monotonic

import structlog

from proxy.sockets.addresses import Address, ReachedAddress
from proxy.sockets.ancillary import ANCILLARY_BYTES, AncillaryReader, Told

__all__ = ["BURST", "Receive", "Receiver"]

Receive = Callable[[bytes, Address, int], None]
"""Datagram, sender, DS-field byte."""

BURST = 64
"""Datagrams read per wake-up, so that timers and replies get their turn (measured best of 16, 64, 256)."""
_MAX_MESSAGE = 65535  # of a whole train too: less would cut its end off
_WARN_EVERY_S = 60.0
_TRUNCATED = int(socket.MSG_TRUNC)  # an enum's & is a call
_log = structlog.get_logger("inferlane.sockets")


class Receiver:
    """The reading side of one socket."""

    def __init__(self, sock: socket.socket, receive: Receive, *, clock: Callable[[], float] = monotonic) -> None:
        self._sock = sock
        self._receive = receive
        self._clock = clock
        self._buffer = bytearray(_MAX_MESSAGE)
        self._view = memoryview(self._buffer)
        self._reader = AncillaryReader()
        self._warned = -_WARN_EVERY_S
        self.received = 0
        """Datagrams."""
        self.messages = 0
        """System calls that brought some."""
        self.truncated = 0
        self.kernel_drops = 0
        """Datagrams that came while the socket's buffer was full."""

    def burst(self) -> None:
        """All that is there, up to about BURST datagrams: a train is taken whole."""
        recvmsg_into, read, view, buffers = self._sock.recvmsg_into, self._reader.read, self._view, [self._view]
        left = BURST
        while left > 0:
            left -= 1  # empty datagrams count too (curl CVE-2026-11352)
            try:
                size, parts, flags, address = recvmsg_into(buffers, ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.EBADF, errno.ENOTSOCK):
                    raise
                continue  # a queued ICMP error, reported once
            self.messages += 1
            self.received += 1
            if flags & _TRUNCATED:
                self.truncated += 1
                continue
            told = read(parts)
            if told.drops is not None and told.drops != self.kernel_drops:
                self._dropped(told.drops)
            if told.source is not None:
                address = ReachedAddress(address)
                address.source = told.source
            if told.segment:
                left -= self._train(size, told, address)
            else:
                self._receive(bytes(view[:size]), address, told.ds_field)

    def _train(self, size: int, told: Told, address: Address) -> int:
        """Hand on each datagram of a train; how many there are beyond the first."""
        for start in range(0, size, told.segment):
            self._receive(bytes(self._view[start : min(start + told.segment, size)]), address, told.ds_field)
        more = max(0, -(-size // told.segment) - 1)
        self.received += more
        return more

    def _dropped(self, drops: int) -> None:
        """drops: since the socket was made, modulo 2^32."""
        lost = (drops - self.kernel_drops) % (1 << 32)
        self.kernel_drops += lost
        now = self._clock()
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            _log.warning(
                "kernel_dropped_datagrams",
                socket="{}:{}".format(*self._sock.getsockname()[:2]),
                dropped=lost,
                remedy="more workers, or a larger receive buffer: sysctl -w net.core.rmem_max=8388608",
            )
