# SPDX-License-Identifier: Apache-2.0
"""Our own UDP socket: connected, marked before its first packet, read in bounded bursts.

asyncio's datagram transports read one packet per wake-up and cannot be marked before they send.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferlane.errors import ConnectionFailed
from inferlane.transports.marking import mark

__all__ = ["Address", "UdpSocket", "resolve"]

_BURST = 64
"""Packets a wake-up may read before other work of the event loop gets its turn."""
_RECEIVE_BUFFER = 1 << 20
"""Linux's default of 208 KiB drops packets of replies that arrive while the application computes."""
# The packet is lost and the protocol above repeats it: a full buffer, or a path with a smaller packet size.
_PACKET_LOST = {errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE}


@dataclass(frozen=True, slots=True)
class Address:
    """One resolved address of a gateway."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def host(self) -> str:
        """The IP address, without its scope."""
        return str(self.sockaddr[0]).partition("%")[0]

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.family == socket.AF_INET6 else self.host
        return f"{host}:{self.sockaddr[1]}"


async def resolve(host: str, port: int) -> list[Address]:
    """Every address of a name, in the system's order of preference (RFC 6724). Raises ConnectionFailed."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConnectionFailed(f"{host}: no address found: {error.strerror or error}") from None
    except UnicodeError:
        raise ConnectionFailed(f"{host}: not a host name") from None
    addresses = [Address(family, tuple(sockaddr)) for family, _, _, _, sockaddr in found]
    return list(dict.fromkeys(addresses))


class UdpSocket:
    """Packets to and from one peer. `failed` is called at most once, never from inside `send`."""

    def __init__(
        self,
        address: Address,
        *,
        dscp: int,
        received: Callable[[list[bytes]], None],
        failed: Callable[[OSError], None],
    ) -> None:
        """Open, mark and connect. Raises OSError where there is no route."""
        self._received = received
        self._failed: Callable[[OSError], None] | None = failed
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(address.family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            mark(self._socket, address.host, dscp)
            self._socket.connect(address.sockaddr)
            self._loop.add_reader(self._socket, self._readable)
        except OSError:
            self._socket.close()
            raise

    def __repr__(self) -> str:
        return f"<UdpSocket {'closed' if self._failed is None else self._socket.getpeername()}>"

    def send(self, packet: bytes) -> None:
        """Send one packet, or lose it as a network may."""
        if self._failed is None:
            return
        try:
            self._socket.send(packet)
        except OSError as error:
            if error.errno not in _PACKET_LOST:
                self._loop.call_soon(self._fail, error)

    def close(self) -> None:
        """No more packets in either direction."""
        if self._failed is not None:
            self._failed = None
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _readable(self) -> None:
        burst: list[bytes] = []
        failure: OSError | None = None
        try:
            while len(burst) < _BURST:
                burst.append(self._socket.recv(65535))
        except BlockingIOError:
            pass  # read empty
        except OSError as error:
            failure = error
        if burst:
            self._received(burst)
        if failure is not None:
            self._fail(failure)

    def _fail(self, error: OSError) -> None:
        failed = self._failed
        if failed is not None:
            self.close()
            failed(error)
