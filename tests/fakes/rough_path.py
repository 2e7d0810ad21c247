# SPDX-License-Identifier: Apache-2.0
"""A path on loopback between UDP clients and a server that loses, delays, reorders, doubles and damages packets.

Both ways alike, by a seeded generator; and on command its clients get new addresses, as behind a NAT that forgot them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

Address = tuple[str, int]

MOST_WAITING = 4096
"""Datagrams on the way at once; a full queue loses what comes, as any router's."""
MOST_CLIENTS = 256


@dataclass(frozen=True, slots=True)
class Roughness:
    """Shares of all datagrams, 0 to 1."""

    loss: float = 0.0
    reordering: float = 0.0
    """Of those that come later than others that were sent after them."""
    duplicates: float = 0.0
    corruption: float = 0.0
    """Of those with one bit turned over, under a checksum that is right."""
    delay_s: float = 0.0
    late_s: float = 0.008
    """How much later those that are reordered or doubled come, at most."""
    rebinding_every: int = 0
    """After so many datagrams the client's next one comes from another address, and does come; 0: never. A network
    forgets an address without a word: where it is the client's turn to wait, nobody could ever tell its server."""


SMOOTH = Roughness()


class _End(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._received(data, addr)


class _Client:
    """One client's address as the server sees it, and those that it had."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.far: asyncio.DatagramTransport | None = None
        self.waiting: list[bytes] = []
        """What came while there was no socket yet."""
        self.since_bound = 0
        """Datagrams either way at this address."""


class RoughPath:
    """To `target` and back, for each client that sends to `address`."""

    def __init__(self, target: Address, how: Roughness, seed: int) -> None:
        self.how = how
        self.counts: Counter[str] = Counter()
        """Datagrams by what became of them; `rebound`: addresses that clients lost."""
        self._target = target
        self._rng = random.Random(seed)
        self._near: asyncio.DatagramTransport | None = None
        self._clients: dict[Address, _Client] = {}
        self._flying: set[asyncio.TimerHandle] = set()
        self._opening: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<RoughPath {self.how} {dict(self.counts)}>"

    @property
    def address(self) -> Address:
        """Where clients find it."""
        assert self._near is not None
        return cast(Address, self._near.get_extra_info("sockname"))

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._near, _ = await loop.create_datagram_endpoint(
            lambda: _End(self._from_client), local_addr=("127.0.0.1", 0)
        )

    def calm(self) -> None:
        """No more faults: what is sent now arrives."""
        self.how = SMOOTH

    def rebind(self) -> None:
        """Every client gets another address. What is on its way to the old one is lost."""
        for client in self._clients.values():
            self._move(client)

    async def close(self) -> None:
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for handle in self._flying:
            handle.cancel()
        for end in (self._near, *(client.far for client in self._clients.values())):
            if end is not None:
                end.abort()
        await asyncio.sleep(0)  # the aborted transports' last callbacks

    def _from_client(self, data: bytes, sender: Address) -> None:
        client = self._clients.get(sender)
        if client is None:
            if len(self._clients) >= MOST_CLIENTS:
                self.counts["strangers"] += 1
                return
            client = self._clients[sender] = _Client(sender)
            self._move(client)
        if self.how.rebinding_every and client.since_bound >= self.how.rebinding_every:
            self._move(client)
            self._fly(self.how.delay_s, data, lambda each: self._to_server(client, each))
            return
        self._carry(client, data, lambda each: self._to_server(client, each))

    def _to_server(self, client: _Client, data: bytes) -> None:
        if client.far is not None:
            client.far.sendto(data)
        elif len(client.waiting) < MOST_WAITING:
            client.waiting.append(data)

    def _from_server(self, client: _Client, data: bytes) -> None:
        near = self._near
        if near is not None:
            self._carry(client, data, lambda each: near.sendto(each, client.address))

    def _move(self, client: _Client) -> None:
        old, client.far, client.since_bound = client.far, None, 0
        if old is not None:
            old.abort()
            self.counts["rebound"] += 1
        task = asyncio.get_running_loop().create_task(self._open(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, client: _Client) -> None:
        far, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _End(lambda data, _: self._from_server(client, data)), remote_addr=self._target
        )
        client.far = far
        for data in client.waiting:
            far.sendto(data)
        client.waiting.clear()

    def _carry(self, client: _Client, data: bytes, on: Callable[[bytes], None]) -> None:
        how, rng, counts = self.how, self._rng, self.counts
        counts["sent"] += 1
        client.since_bound += 1
        if rng.random() < how.loss or len(self._flying) >= MOST_WAITING:
            counts["lost"] += 1
            return
        if data and rng.random() < how.corruption:
            counts["corrupted"] += 1
            at = rng.randrange(len(data))
            data = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        late = rng.random() < how.reordering
        counts["reordered"] += late
        self._fly(how.delay_s + rng.uniform(0, how.late_s) * late, data, on)
        if rng.random() < how.duplicates:
            counts["doubled"] += 1
            self._fly(how.delay_s + rng.uniform(0, how.late_s), data, on)

    def _fly(self, seconds: float, data: bytes, on: Callable[[bytes], None]) -> None:
        if not seconds:
            on(data)
            return

        def arrive() -> None:
            self._flying.discard(handle)
            on(data)

        handle = asyncio.get_running_loop().call_later(seconds, arrive)
        self._flying.add(handle)


@asynccontextmanager
async def rough_path(target: Address, how: Roughness, *, seed: int = 1) -> AsyncIterator[RoughPath]:
    """A path to a server on loopback until the block ends."""
    path = RoughPath(target, how, seed)
    await path.start()
    try:
        yield path
    finally:
        await path.close()
