# SPDX-License-Identifier: Apache-2.0
"""A server behind a Unix socket, which knows its model by a name of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.remote.oip import OipBackend
from inferlane.errors import Refused
from tests.fakes.asking import asking, request_of
from tests.fakes.raw_server import Peer

HELLO = b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}'


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[asyncio.Queue[Peer]]:
    """Whoever connects to the socket."""
    peers: asyncio.Queue[Peer] = asyncio.Queue()
    server = await asyncio.start_unix_server(lambda *both: peers.put_nowait(Peer(*both)), tmp_path / "socket")
    yield peers
    server.close()
    await server.wait_closed()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[OipBackend]:
    backend = OipBackend("http://models", slots=2, unix=tmp_path / "socket", model="numbers/1")
    await backend.start()
    yield backend
    await backend.close()


async def test_a_request_goes_to_the_socket_and_to_that_model(backend, peers):
    task = asking(backend, request_of(model="anything", version="1"))
    peer = await peers.get()
    head, body = await peer.request()
    assert head.startswith(b"POST /v2/models/numbers%2F1/versions/1/infer HTTP/1.1\r\nhost: models\r\n")
    assert body == b"{}"
    peer.say(HELLO)
    assert (await task).body == b'{"a":1}'
    again = asking(backend, request_of(model="else"))
    assert (await peer.head()).startswith(b"POST /v2/models/numbers%2F1/infer ")
    peer.say(HELLO)
    assert (await again).status == 200
    peer.close()


async def test_its_metadata_are_asked_there_too(backend, peers):
    asked = asyncio.ensure_future(backend.metadata("anything", "", deadline=asyncio.get_running_loop().time() + 60))
    peer = await peers.get()
    assert (await peer.head()).startswith(b"GET /v2/models/numbers%2F1 HTTP/1.1\r\n")
    peer.say(HELLO)
    assert (await asked).status == 200
    peer.close()


async def test_nobody_at_the_socket(tmp_path: Path):
    backend = OipBackend("http://models", slots=2, unix=tmp_path / "none")
    with pytest.raises(Refused, match="cannot be reached: No such file") as refused:
        await backend.infer(request_of())
    assert refused.value.status == 503
    assert str(tmp_path) not in refused.value.detail
