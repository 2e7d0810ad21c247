# SPDX-License-Identifier: Apache-2.0
"""A UDP socket of our own on the running loop: bounded receive bursts with DSCP and ECN, marked sends that never wait.

asyncio's datagram transports give neither ancillary data nor bursts, so the
socket hangs on the loop by its file descriptor.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from proxy.sockets.addresses import Address
from proxy.sockets.binding import bind, marks_packets
from proxy.sockets.receiver import BURST, Receive, Receiver
from proxy.sockets.sender import Sender
from qos.marking import UNMARKED, Mark

__all__ = ["BURST", "Address", "Receive", "UdpSocket", "bind", "marks_packets"]


class UdpSocket:
    """One bound socket, until `close`.

    mark: what most of its datagrams carry. per_packet: whether the kernel takes a priority with a packet; None: ask it.
    slowest_bps: of the configured egress rates, if there are.
    """

    def __init__(
        self,
        sock: socket.socket,
        receive: Receive,
        *,
        burst_ended: Callable[[], None],
        mark: Mark = UNMARKED,
        per_packet: bool | None = None,
        slowest_bps: float | None = None,
    ) -> None:
        self._sock = sock
        self._receiver = Receiver(sock, receive)
        self._sender = Sender(sock, mark=mark, per_packet=per_packet, slowest_bps=slowest_bps)
        self._burst_ended = burst_ended
        self.send = self._sender.send
        self.send_all = self._sender.send_all
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)

    @property
    def address(self) -> Address:
        """Where it is bound."""
        host, port, *_ = self._sock.getsockname()
        return host, port

    @property
    def received(self) -> int:
        """Datagrams read."""
        return self._receiver.received

    @property
    def sent(self) -> int:
        """Datagrams written."""
        return self._sender.sent

    @property
    def dropped(self) -> dict[str, int]:
        """Datagrams that were not read whole or not sent, by reason."""
        return {"truncated": self._receiver.truncated, **self._sender.dropped}

    @property
    def kernel_drops(self) -> int:
        """Datagrams that came while the socket's buffer was full."""
        return self._receiver.kernel_drops

    @property
    def trains(self) -> dict[str, int]:
        """Messages of several datagrams each: sent, and refused by the kernel or the device."""
        return {"sent": self._sender.trains, "refused": self._sender.trains_refused}

    def close(self) -> None:
        """Off the loop and closed."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sender.close()
        self._sock.close()

    def _readable(self) -> None:
        try:
            self._receiver.burst()
        finally:
            self._burst_ended()
