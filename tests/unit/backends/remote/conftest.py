# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backends.remote.connection import Connection
from backends.remote.oip import OipBackend
from backends.remote.openai import OpenAiBackend
from tests.fakes.asking import settle
from tests.fakes.openai_server import OpenAiServer
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


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAiServer]:
    server = OpenAiServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def openai(upstream) -> AsyncIterator[OpenAiBackend]:
    backend = OpenAiBackend(upstream.url, slots=4)
    await backend.start()
    yield backend
    await backend.close()
