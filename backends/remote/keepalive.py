# SPDX-License-Identifier: Apache-2.0
"""Connections to one HTTP/1.1 backend: opened within a deadline, kept per traffic class, closed when idle too long.

Never shared between classes, because a connection's packets carry one DSCP (RFC 7657 section 5.1). Where a class's mark
was changed, a kept connection takes the new one at once and ends after that exchange: servers that answer with the mark
of the SYN (docs/marking.md) would go on with the old one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from time import monotonic

from backends.remote.address import CONNECT_S, Address, open_socket, reaching, resolve
from backends.remote.connection import READ, Connection
from backends.remote.http1 import Heads
from backends.remote.marks import MarkedSocket
from backends.remote.origin import Origin
from inferlane.errors import Reason, Refused
from qos.marking import UNMARKED, Mark

__all__ = ["Connections"]

IDLE_S = 30.0
"""Idle connections are closed after this; common backends do so after 5 to 75 s."""


class Connections:
    """The owner of all connections to one origin.

    max_idle: connections kept, though each class may keep one; idle_s: seconds an unused one is kept.
    """

    def __init__(self, origin: Origin, *, max_idle: int, idle_s: float = IDLE_S) -> None:
        self.tls: ssl.SSLContext | None = None
        """What new connections are secured with; None: plain TCP."""
        self._origin = origin
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: dict[str, list[Connection]] = {}
        self._idle_count = 0
        self._live: dict[Connection, MarkedSocket] = {}
        self.heads = Heads()
        """What was read on any of them, and need not be parsed again."""
        self._room = memoryview(bytearray(READ))
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_gone: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        idle = ", ".join(f"{class_name} {len(stack)}" for class_name, stack in self._idle.items() if stack)
        return f"<Connections {self._origin.authority.decode()} {len(self._live)} open, idle: {idle or 'none'}>"

    def take(self, class_name: str, mark: Mark = UNMARKED, *, used_since: float = 0.0) -> Connection | None:
        """The connection of this class that was used last, so that the others may grow old; None: open one."""
        stack = self._idle.get(class_name)
        while stack:
            connection = stack[-1]
            usable = connection.usable
            if usable and connection.idle_since < used_since:
                return None
            stack.pop()
            self._idle_count -= 1
            if usable:
                self._live[connection].carry(mark)
                return connection
        return None

    async def open(self, class_name: str, mark: Mark = UNMARKED, *, deadline: float) -> Connection:
        """A new connection, at most CONNECT_S and not beyond `deadline`. Raises Refused."""
        async with reaching(deadline):
            return await self._connect(class_name, mark)

    def keep(self, connection: Connection) -> None:
        """A connection's exchange is over."""
        if self._closed or self._live[connection].changed:
            connection.close()
            return
        connection.idle_since = monotonic()
        stack = self._idle.get(connection.class_name)
        if stack is None:
            stack = self._idle[connection.class_name] = []
        stack.append(connection)
        self._idle_count += 1
        if self._idle_count > self._max_idle:
            self._thin_out()
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._live.pop(connection, None)
        stack = self._idle.get(connection.class_name, [])
        if connection in stack:
            stack.remove(connection)
            self._idle_count -= 1
        if self._all_gone is not None and not self._live and not self._all_gone.done():
            self._all_gone.set_result(None)

    async def close(self) -> None:
        """Close all of them; what is in flight fails."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._live):
            connection.close(Refused(Reason.BACKEND_FAILED, "the gateway closed its connections to this backend"))
        if self._live:
            self._all_gone = asyncio.get_running_loop().create_future()
            await self._all_gone

    async def _connect(self, class_name: str, mark: Mark) -> Connection:
        addresses = await self._addresses()
        patience = CONNECT_S / len(addresses)  # so that a dead first address (often IPv6) leaves time for the next
        for family, address in addresses[:-1]:
            with suppress(OSError):  # TimeoutError is one; the last address tells what is wrong
                async with asyncio.timeout(patience):
                    return await self._connect_to(family, address, class_name, mark)
        return await self._connect_to(*addresses[-1], class_name, mark)

    async def _addresses(self) -> list[tuple[int, Address]]:
        origin = self._origin
        if origin.unix is not None:
            return [(socket.AF_UNIX, str(origin.unix))]
        return await resolve(origin.address or origin.host, origin.port, socket.SOCK_STREAM)

    async def _connect_to(self, family: int, address: Address, class_name: str, mark: Mark) -> Connection:
        loop = asyncio.get_running_loop()
        sock = open_socket(family, socket.SOCK_STREAM, mark)
        try:
            await loop.sock_connect(sock, address)
            _, connection = await loop.create_connection(
                lambda: Connection(self, class_name, self.heads, self._room),
                sock=sock,
                ssl=self.tls,
                server_hostname=self._origin.host if self.tls is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        if connection.usable:  # else it is lost already, and nobody will say so again
            self._live[connection] = MarkedSocket(sock, mark)
        if self._closed:
            connection.close()
        return connection

    def _thin_out(self) -> None:
        """One too many: the class that keeps most gives up its oldest. The last one of a class stays, or classes that
        take turns would open a connection for every request."""
        most = max(self._idle.values(), key=len)
        if len(most) > 1:
            most.pop(0).close()
            self._idle_count -= 1

    def _sweep(self) -> None:
        """Close what has been idle for too long; come again when the next will have been."""
        now = monotonic()
        oldest = None
        for stack in self._idle.values():
            while stack and stack[0].idle_since + self._idle_s <= now:
                stack.pop(0).close()
                self._idle_count -= 1
            if stack and (oldest is None or stack[0].idle_since < oldest):
                oldest = stack[0].idle_since
        self._sweeper = None
        if oldest is not None:
            # a little late, so that one round takes all that fall due together
            delay = oldest + self._idle_s - now + self._idle_s / 30
            self._sweeper = asyncio.get_running_loop().call_later(delay, self._sweep)
