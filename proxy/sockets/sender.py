# SPDX-License-Identifier: Apache-2.0
"""Marked sends that never wait: trains where the kernel cuts them, a short backlog where it has no room just now."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable, Sequence
from time import monotonic

import structlog

from proxy.sockets.addresses import Address, ReachedAddress
from proxy.sockets.backlog import Backlog, Waiting
from proxy.sockets.binding import cuts_trains, marks_packets
from proxy.sockets.linux import SOL_UDP, UDP_SEGMENT
from proxy.sockets.trains import trains
from qos.dscp import ds_field
from qos.marking import UNMARKED, Ancillary, Mark, ancillary, socket_options

__all__ = ["Sender"]

# What drivers and kernels answer to UDP_SEGMENT where it does not work: without checksum offload, behind IPsec, on a
# path that is narrower than its datagrams (quic-go and qh3 have the same list).
_NO_TRAINS = {errno.EMSGSIZE, errno.EIO, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOPROTOOPT}
_NO_ROOM = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS}
_TRY_AGAIN_S = 60.0
"""Until trains are tried again: the route that refused them may not be everybody's."""
_RETRY_S = 0.002  # nothing tells when a device's queue has room again; uvloop counts in ms
_MOST_KNOWN = 256
_log = structlog.get_logger("inferlane.sockets")


class Sender:
    """The writing side of one socket.

    mark: what most of its datagrams carry. per_packet: False where the kernel takes no priority with a packet: then the
    socket is re-marked when the mark changes. A second socket would tear a connection's packets apart. slowest_bps: of
    the links that it may send by, as configured; None: nobody said.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        mark: Mark = UNMARKED,
        per_packet: bool | None = None,
        slowest_bps: float | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.sent = self.messages = self.trains = self.trains_refused = 0
        """Datagrams; system calls for them, those that carried several, and those of these that were refused."""
        self._failures = dict.fromkeys(("send_failed", "too_long"), 0)
        self._sock = sock
        self._clock = clock
        self._slowest_bps = slowest_bps
        self._per_packet = marks_packets() if per_packet is None else per_packet
        self._parts: dict[tuple[Mark, int], list[Ancillary]] = {}
        self._set_mark(mark)
        self._trains_from = 0.0 if cuts_trains(sock) else float("inf")
        self._backlog = Backlog()
        self._crowded = False  # something waits in the backlog: what comes now waits behind it
        self._writing = False
        self._retry: asyncio.TimerHandle | None = None

    def send(self, datagram: bytes, address: Address, mark: Mark = UNMARKED) -> None:
        """Send, or keep for a moment, or drop: QUIC's loss recovery repeats what mattered."""
        if self._crowded or mark != self._marked or type(address) is ReachedAddress:
            self._offer((datagram,), address, mark)
            return
        try:  # the usual one, written out: for one datagram in flight this is a part of the round trip
            self._sock.sendto(datagram, address)
            self.messages += 1
            self.sent += 1
        except OSError as error:
            self._failed(error, Waiting((datagram,), address, mark, self._clock()))

    def send_all(self, datagrams: Sequence[bytes], address: Address, mark: Mark = UNMARKED) -> None:
        """Datagrams to one address under one mark, in this order; each like by `send`."""
        if len(datagrams) == 1 or self._clock() < self._trains_from:
            for datagram in datagrams:
                self.send(datagram, address, mark)
            return
        for train in trains(datagrams, self._slowest_bps):
            self._offer(train, address, mark)

    def close(self) -> None:
        """Forget what waits. The socket is its owner's."""
        self._stop_waiting()
        self._backlog = Backlog()

    @property
    def dropped(self) -> dict[str, int]:
        """Datagrams that did not go, by reason."""
        return {**self._failures, "backlog_full": self._backlog.dropped}

    def _offer(self, datagrams: Sequence[bytes], address: Address, mark: Mark) -> None:
        """One datagram, or one train."""
        if self._crowded:
            self._backlog.put(Waiting(datagrams, address, mark, self._clock()))
            return
        try:
            self._write(datagrams, address, mark)
        except OSError as error:
            self._failed(error, Waiting(datagrams, address, mark, self._clock()))

    def _write(self, datagrams: Sequence[bytes], address: Address, mark: Mark) -> None:
        if mark != self._marked and not self._per_packet:
            self._set_mark(mark)
        parts = self._ancillary(mark, len(datagrams[0]) if len(datagrams) > 1 else 0)
        if type(address) is ReachedAddress:
            parts = [*parts, address.source]
        if parts:
            self._sock.sendmsg(datagrams, parts, 0, address)
        else:
            self._sock.sendto(datagrams[0], address)
        self.messages += 1
        self.sent += len(datagrams)
        self.trains += len(datagrams) > 1

    def _failed(self, error: OSError, waiting: Waiting) -> None:
        """What did not go waits, goes singly, or is lost."""
        datagrams = waiting.datagrams
        if error.errno in _NO_ROOM:
            self._backlog.put(waiting)
            self._wait_for_room(error)
        elif error.errno in (errno.EBADF, errno.ENOTSOCK):
            raise error
        elif len(datagrams) > 1 and error.errno in _NO_TRAINS:
            self._go_singly(error, waiting)
        else:
            # ECONNREFUSED and EHOSTUNREACH: an earlier datagram's ICMP. EPERM: a firewall rule. EMSGSIZE: longer than
            # any path carries. None of them says anything about this socket.
            self._failures["too_long" if error.errno == errno.EMSGSIZE else "send_failed"] += len(datagrams)

    def _go_singly(self, error: OSError, waiting: Waiting) -> None:
        """The same datagrams one by one: nothing is lost. Where they go so, it was the train that could not."""
        before = self.sent
        for datagram in waiting.datagrams:
            self._offer((datagram,), waiting.address, waiting.mark)
        # EMSGSIZE: this one path is narrower than its datagrams, and singly the kernel cuts them to IP fragments.
        if self.sent > before and error.errno != errno.EMSGSIZE:
            self._refuse_trains(error)

    def _refuse_trains(self, error: OSError) -> None:
        self._trains_from = self._clock() + _TRY_AGAIN_S
        self.trains_refused += 1
        if self.trains_refused == 1:
            _log.warning(
                "trains_refused",
                socket="{}:{}".format(*self._sock.getsockname()[:2]),
                why=error.strerror,
                remedy="where the device can: ethtool -K DEVICE tx-checksumming on; "
                "else none is needed, datagrams go one by one and cost more CPU",
            )

    def _wait_for_room(self, error: OSError) -> None:
        self._crowded = True
        loop = asyncio.get_running_loop()
        if error.errno != errno.ENOBUFS:
            if not self._writing:
                self._writing = True
                loop.add_writer(self._sock.fileno(), self._drain)
        elif self._retry is None:
            self._retry = loop.call_later(_RETRY_S, self._drain)

    def _drain(self) -> None:
        """There may be room again."""
        self._stop_waiting()
        while (waiting := self._backlog.first(self._clock())) is not None:
            try:
                self._write(waiting.datagrams, waiting.address, waiting.mark)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._wait_for_room(error)
                    return
                self._backlog.take()
                self._failed(error, waiting)
            else:
                self._backlog.take()

    def _stop_waiting(self) -> None:
        self._crowded = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._writing:
            self._writing = False
            asyncio.get_running_loop().remove_writer(self._sock.fileno())

    def _set_mark(self, mark: Mark) -> None:
        for option in socket_options(self._sock.family, mark):
            self._sock.setsockopt(*option)
        self._marked = mark

    def _ancillary(self, mark: Mark, segment: int) -> list[Ancillary]:
        """Of one message. segment: bytes of each datagram of a train, else 0."""
        parts = self._parts.get((mark, segment))
        if parts is None:
            if len(self._parts) >= _MOST_KNOWN:
                self._parts.clear()
            parts = self._parts[mark, segment] = []
            if mark != self._marked:
                parts += ancillary(self._sock.family, ds_field(mark.dscp), mark.priority)
            if segment:
                parts.append((SOL_UDP, UDP_SEGMENT, segment.to_bytes(2, sys.byteorder)))
        return parts
