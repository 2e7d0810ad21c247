# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backends.remote.connection import Connection
from backends.remote.oip import OipBackend
from tests.fakes.asking import settle
from tests.fakes.raw_server import RawServer
from tests.fakes.raw_udp import RawUdpServer
from tests.fakes.transport import FakeTransport, Shelf


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    """A TCP server that the test plays."""
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def udp() -> AsyncIterator[RawUdpServer]:
    """A UDP server that the test plays."""
    server = RawUdpServer()
    await server.start()
    yield server
    server.close()
    await asyncio.sleep(0)


@pytest.fixture
async def backend(server) -> AsyncIterator[OipBackend]:
    """Asks that TCP server."""
    backend = OipBackend(f"http://127.0.0.1:{server.port}", slots=4)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def connection(shelf) -> Connection:
    return Connection(shelf, "realtime")


@pytest.fixture
async def transport(connection):
    yield FakeTransport(connection)
    connection.close()
    await settle()
