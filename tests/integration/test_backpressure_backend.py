# SPDX-License-Identifier: Apache-2.0
"""Clients that do not read and backends that do not read cost the gateway a bounded part of what they are owed.

The gateway is a process of its own, and its memory is what the kernel says it is. Long replies come as backends frame
them: with a length, in chunks, until the connection's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path

import pytest

from benchmarks.processes import resident_kib
from tests.fakes import programs
from tests.fakes.live_gateway import PATIENCE_S, oip_pool, write_config
from tests.fakes.programs import GatewayProgram
from tests.fakes.raw_quic import Exchange, RawClient, http3, section

INFER = b"/v2/models/m/infer"
MIB = 1 << 20
OWED = 100 * MIB
PIECE = b"{" + b" " * (64 * 1024 - 1)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CONNECTIONS, STREAMS = 10, 10


class HeavyBackend:
    """Answers each request with OWED bytes, as fast as they are taken; or reads no more of a request than its head."""

    def __init__(self) -> None:
        self.port = 0
        self.reads = True
        self.asked = 0
        self.sent = 0
        self._numbers = count()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, limit=16 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if not self.reads:
                return
            framing, framed = _FRAMINGS[next(self._numbers) % len(_FRAMINGS)]
            writer.write(HEAD + framing + b"\r\n")
            for _ in range(OWED // len(PIECE)):
                writer.write(framed)
                self.sent += len(PIECE)
                await writer.drain()


_FRAMINGS = (
    (b"content-length: %d\r\n" % OWED, PIECE),
    (b"transfer-encoding: chunked\r\n", b"%x\r\n%b\r\n" % (len(PIECE), PIECE)),
    (b"connection: close\r\n", PIECE),
)


@pytest.fixture
async def backend() -> AsyncIterator[HeavyBackend]:
    backend = HeavyBackend()
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
def gateway(backend: HeavyBackend, tmp_path: Path) -> Iterator[GatewayProgram]:
    """With a place for everybody."""
    listener = "max_class: realtime, tls: development, max_body: 128MiB"
    conf = write_config(tmp_path, oip_pool(backend.port, slots=CONNECTIONS * STREAMS), listener=listener)
    with programs.gateway(conf, ca=tmp_path) as running:
        yield running


async def still(figure: Callable[[], int], what: Callable[[], bool]) -> None:
    """Wait until `what` is so, and this figure has not changed for a while."""
    async with asyncio.timeout(PATIENCE_S):
        unchanged, last = 0, -1
        while unchanged < 20:
            await asyncio.sleep(0.05)
            unchanged = unchanged + 1 if what() and figure() == last else 0
            last = figure()


async def stalled_client(stack: AsyncExitStack, gateway: GatewayProgram) -> RawClient:
    """A connection whose windows never open again."""
    client = await stack.enter_async_context(http3(("127.0.0.1", gateway.port)))
    client.quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
    client.quic._write_connection_limits = lambda **_: None  # type: ignore[method-assign]
    return client


async def test_a_hundred_clients_that_do_not_read_cost_less_than_one_of_them_is_owed(gateway, backend):
    async with AsyncExitStack() as stack:
        clients = [await stalled_client(stack, gateway) for _ in range(CONNECTIONS)]
        before = resident_kib(gateway.program.pid)
        asked = [client.send(section(INFER), b"{}") for client in clients for _ in range(STREAMS)]
        await still(lambda: backend.sent, lambda: backend.asked == len(asked) and any(each.body for each in asked))
        grown = resident_kib(gateway.program.pid) - before
        assert grown * 1024 < OWED
        assert backend.sent < len(asked) * OWED / 10  # the others wait at the backend, which was not asked for them
        assert not any(each.ended or each.reset for each in asked)
        for each in asked:
            each.abandon()


async def test_an_upload_waits_for_the_backend_and_its_client_for_both(gateway, backend):
    backend.reads = False
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(http3(("127.0.0.1", gateway.port))) for _ in range(4)]
        before = resident_kib(gateway.program.pid)
        length = (b"content-length", b"%d" % OWED)
        asked = [client.send(section(INFER, length), b"{" + b" " * (16 * MIB), end=False) for client in clients]
        granted = lambda: sum(map(_granted, asked))  # noqa: E731
        await still(granted, lambda: backend.asked == len(asked))
        grown = resident_kib(gateway.program.pid) - before
        assert all(_granted(each) < 12 * MIB for each in asked)
        assert grown < 64 * 1024
        for each in asked:
            each.abandon()


def _granted(exchange: Exchange) -> int:
    """Bytes that the gateway has allowed its client to send on this stream."""
    return exchange.client.quic._streams[exchange.stream_id].max_stream_data_remote
