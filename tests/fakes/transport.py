# SPDX-License-Identifier: Apache-2.0
"""A stream transport without a socket: what is written is kept, and the test plays the network."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic

from backends.remote.connection import Answer, Connection
from tests.fakes.asking import settle


class FakeTransport(asyncio.Transport):
    """Aborting it tells the protocol so at the loop's next turn, as asyncio's own does."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.reading = True
        self.aborted = False
        self._protocol = protocol
        protocol.connection_made(self)

    def write(self, data: bytes) -> None:
        assert not self.aborted, "written after the end"
        self.written += data
        self.writes += 1

    def writelines(self, list_of_data: Iterable[bytes]) -> None:
        self.write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.most_unsent = high

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class Shelf:
    """The owner: what was kept and what was lost."""

    def __init__(self) -> None:
        self.kept: list[Connection] = []
        self.gone: list[Connection] = []

    def keep(self, connection: Connection) -> None:
        self.kept.append(connection)

    def lost(self, connection: Connection) -> None:
        self.gone.append(connection)


async def exchange(connection: Connection, data: bytes = b"POST", **more: object) -> asyncio.Task[Answer]:
    """One exchange under way, its request written."""
    task = asyncio.ensure_future(connection.ask(data, deadline=more.pop("deadline", monotonic() + 60), **more))
    await settle()
    return task
