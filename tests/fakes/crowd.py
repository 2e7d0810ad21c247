# SPDX-License-Identifier: Apache-2.0
"""Many clients of one gateway by inference datagram, each with an address of its own on loopback."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from inferlane.wire import Header, Type, decode, encode

# Longer than anything here takes; a test that waits this long has failed.
PATIENCE_S = 60.0
_REPEAT_S = 3.0
# Greetings under way: more of them at once would overflow the gateway's socket buffer.
_AT_ONCE = 64
_FIRST_ADDRESS = int(IPv4Address("127.1.0.1"))
_request_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back, and in which order among all of the crowd."""

    place: int
    header: Header
    body: bytes


class Member:
    """One client."""

    def __init__(self, address: str, gateway: tuple[str, int], served: itertools.count[int]) -> None:
        self.address = address
        self._served = served
        self._cookie = bytes(16)
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.bind((address, 0))
        self._sock.connect(gateway)
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    async def greet(self) -> None:
        """Get the cookie that proves its address."""
        async with asyncio.timeout(PATIENCE_S):
            while self._cookie == bytes(16):
                self._say(Header(type=Type.PING, request_id=next(_request_ids), cookie=self._cookie))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REPEAT_S):
                        while self._cookie == bytes(16):
                            await asyncio.sleep(0.001)

    def ask(self, *, cls: str | None = None, body: bytes = b"{}", **fields: int) -> asyncio.Task[Answered]:
        """Ask model m; what is lost is repeated."""
        request_id = next(_request_ids)
        header = Header(
            type=Type.REQUEST,
            request_id=request_id,
            model="m",
            class_name=cls,
            cookie=self._cookie,
            total_length=len(body),
            **fields,
        )
        future = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        self._say(header, body)
        return asyncio.ensure_future(self._repeated(header, body, future))

    def leave(self) -> None:
        """Without a word: its socket is closed."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    async def _repeated(self, header: Header, body: bytes, future: asyncio.Future[Answered]) -> Answered:
        async with asyncio.timeout(PATIENCE_S):
            while not (await asyncio.wait({future}, timeout=_REPEAT_S))[0]:
                self._say(header, body)
        return future.result()

    def _say(self, header: Header, body: bytes = b"") -> None:
        with suppress(BlockingIOError):
            self._sock.send(encode(header) + body)

    def _readable(self) -> None:
        with suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                data = self._sock.recv(65535)
                header, offset = decode(data)
                if header.type is Type.CHALLENGE and header.cookie is not None:
                    self._cookie = header.cookie
                elif header.type in (Type.REPLY, Type.ERROR):
                    future = self._waiting.pop(header.request_id, None)
                    if future is not None:
                        future.set_result(Answered(next(self._served), header, data[offset:]))


@asynccontextmanager
async def crowd(gateway: tuple[str, int], count: int) -> AsyncIterator[list[Member]]:
    """So many of them, each known to the gateway."""
    served = itertools.count()
    members = [Member(str(IPv4Address(_FIRST_ADDRESS + each)), gateway, served) for each in range(count)]
    try:
        await in_waves(members)
        yield members
    finally:
        for member in members:
            member.leave()


async def in_waves(members: Iterable[Member]) -> None:
    """Greet, a few at once."""
    left = iter(members)
    while wave := list(itertools.islice(left, _AT_ONCE)):
        await asyncio.gather(*(each.greet() for each in wave))
