# SPDX-License-Identifier: Apache-2.0
"""A UDP server without a protocol: the test reads each inference datagram and says what goes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

from inferlane.wire import Header, Type, decode, encode

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 10.0
COOKIE = b"c" * 16

Address = tuple[str, int]


class RawUdpServer(asyncio.DatagramProtocol):
    """Bound to a free loopback port. `receive` waits for the next datagram; `say` answers a client."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()
        self._transport: asyncio.DatagramTransport | None = None
        self.client: Address = ("", 0)
        """Who sent the datagram that was received last."""

    @property
    def port(self) -> int:
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    @property
    def waiting(self) -> int:
        """Datagrams that nobody has received yet."""
        return self._arrived.qsize()

    async def start(self, port: int = 0) -> None:
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", port))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._arrived.put_nowait((data, addr))

    async def receive(self) -> tuple[Header, bytes]:
        """The next datagram, taken apart."""
        async with asyncio.timeout(PATIENCE_S):
            data, self.client = await self._arrived.get()
        header, length = decode(data)
        return header, data[length:]

    def say(self, data: bytes, to: Address | None = None) -> None:
        assert self._transport is not None
        self._transport.sendto(data, to or self.client)

    def challenge(self, request: Header) -> None:
        """Ask for the cookie."""
        self.say(encode(Header(type=Type.CHALLENGE, request_id=request.request_id, cookie=COOKIE)))

    def reply(self, request: Header, body: bytes, **more: object) -> None:
        """Answer in one datagram."""
        header = Header(type=Type.REPLY, request_id=request.request_id, status=200, total_length=len(body))
        self.say(encode(replace(header, **more)) + body)

    async def greet(self) -> tuple[Header, bytes]:
        """Receive a client's first datagram, prove its address, and receive what it repeats."""
        header, _ = await self.receive()
        self.challenge(header)
        return await self.receive()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
