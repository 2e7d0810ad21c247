# SPDX-License-Identifier: Apache-2.0
"""A path between one UDP client and a server that loses packets, moves the client and clears marks when told to.

It sends from sockets without a mark, as a network does that clears DSCP at its edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

Address = tuple[str, int]


class _End(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._received(data, addr)


class Relay:
    """From one client to `target` and back. losing: whether what the server sends is lost."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._client: Address | None = None
        self._near: asyncio.DatagramTransport | None = None
        self._far: asyncio.DatagramTransport | None = None
        self.losing = False
        self.lost = 0

    @property
    def address(self) -> Address:
        """Where the client finds it."""
        assert self._near is not None
        return cast(Address, self._near.get_extra_info("sockname"))

    @property
    def port(self) -> int:
        """Where the server finds the client."""
        assert self._far is not None
        return int(self._far.get_extra_info("sockname")[1])

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._near, _ = await loop.create_datagram_endpoint(lambda: _End(self._to_server), local_addr=("127.0.0.1", 0))
        await self.move()

    async def move(self) -> None:
        """The client gets another port, as behind a NAT that forgot it."""
        before = self._far
        self._far, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _End(self._to_client), remote_addr=self._target
        )
        if before is not None:
            before.abort()

    def close(self) -> None:
        for end in (self._near, self._far):
            if end is not None:
                end.abort()

    def _to_server(self, data: bytes, sender: Address) -> None:
        self._client = sender
        assert self._far is not None
        self._far.sendto(data)

    def _to_client(self, data: bytes, _: Address) -> None:
        if self.losing:
            self.lost += 1
        elif self._near is not None and self._client is not None:
            self._near.sendto(data, self._client)


@asynccontextmanager
async def relaying(target: Address) -> AsyncIterator[Relay]:
    """A path to a server on loopback until the block ends."""
    relay = Relay(target)
    await relay.start()
    try:
        yield relay
    finally:
        relay.close()
        await asyncio.sleep(0)  # the aborted transports' last callbacks
