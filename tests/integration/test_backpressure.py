# SPDX-License-Identifier: Apache-2.0
"""Whoever does not read slows down who sends to him, by every door and in both directions; the rest is a bounded cost.

The gateway is processes of its own, and their memory is what the kernel says it is. An allocator keeps what was freed
once, so memory is compared with what a first round has left, not with what was there before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.processes import resident_kib
from tests.fakes import programs
from tests.fakes.heavy_backend import MIB, OWED, HeavyBackend, owed, serving
from tests.fakes.live_gateway import write_config
from tests.fakes.owing import DOORS, Asked, Client
from tests.fakes.programs import PATIENCE_S, GatewayProgram
from tests.fakes.raw_quic import http3, section

CLIENTS = 100
CLASSES = """
  - {name: realtime, dscp: EF, deadline: 10m, default: true}
  - {name: hasty, dscp: CS1, deadline: 10m, stream: {stall: 2s}}
"""
SLACK_KIB = 24 * 1024
"""What a second round may add: allocators place things otherwise each time. A leak of its replies would be 50 MiB."""
KERNEL = 40 * MIB
"""Most that the sockets of an upload take: Linux lets a sending one grow to 4 MiB (tcp_wmem), and a receiving one,
where the client comes by TCP, to 6 or 32 MiB (tcp_rmem)."""


@pytest.fixture
async def backend() -> AsyncIterator[HeavyBackend]:
    async with serving() as backend:
        yield backend


@pytest.fixture
def gateway(backend: HeavyBackend, tmp_path: Path) -> Iterator[GatewayProgram]:
    """With a place for everybody."""
    server = f'"http://127.0.0.1:{backend.port}"'
    pools = (
        f'[{{name: far, model: "*", endpoints: [{{oip: {server}, slots: {CLIENTS}}}]}}, '
        f"{{name: llm, model: tiny, endpoints: [{{openai: {server}, slots: {CLIENTS}}}]}}]"
    )
    listener = "max_class: realtime, tls: development, max_body: 128MiB"
    conf = write_config(tmp_path, pools, listener=listener, classes=CLASSES)
    with programs.gateway(conf, ca=tmp_path) as running:
        yield running


async def eventually(what: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.05)


async def still(figure: Callable[[], int]) -> int:
    """What this figure is when it has not changed for a while."""
    unchanged, last = 0, figure()
    async with asyncio.timeout(PATIENCE_S):
        while unchanged < 20:
            await asyncio.sleep(0.05)
            unchanged = unchanged + 1 if figure() == last else 0
            last = figure()
    return last


async def asked_of_all(clients: Sequence[Client], backend: HeavyBackend) -> list[Asked]:
    """As many requests as there are places, each answered as far as its client lets it."""
    before = backend.asked
    asked = [await client.ask("down", b"{}") for client in clients for _ in range(CLIENTS // len(clients))]
    await eventually(lambda: backend.asked == before + CLIENTS)
    await still(lambda: backend.sent)
    return asked


@pytest.mark.parametrize(("door", "connections"), [("h3", CLIENTS), ("h3", 4), ("stream", CLIENTS), ("h1", CLIENTS)])
async def test_a_hundred_clients_that_do_not_read_cost_less_than_one_of_them_is_owed(
    gateway: GatewayProgram, backend: HeavyBackend, door: str, connections: int
) -> None:
    pid, address = gateway.program.pid, ("127.0.0.1", gateway.port)
    before, rounds = resident_kib(pid), []
    for _ in range(2):
        sent = backend.sent
        async with AsyncExitStack() as stack:
            clients = [await DOORS[door](stack, address) for _ in range(connections)]
            asked = await asked_of_all(clients, backend)
            rounds.append(resident_kib(pid) - before)
            assert backend.sent - sent < CLIENTS * OWED / 5  # the rest waits at the backend, which is not asked for it
            for each in (asked[0], asked[-1]):
                came = await each.read(MIB // 4)  # on few connections, so do all the others of these two
                assert came == owed(0, len(came))
            for each in asked:
                each.leave()
        # Of a QUIC connection that was closed something is left for three of its time-outs (RFC 9000 section 10.2).
        await eventually(lambda: gateway.metric("inferlane_connections") == 0)
    assert rounds[0] * 1024 < OWED
    assert rounds[1] < rounds[0] + SLACK_KIB


@pytest.mark.parametrize("door", DOORS)
async def test_whoever_reads_again_gets_all_that_is_owed(
    gateway: GatewayProgram, backend: HeavyBackend, door: str
) -> None:
    length = 100 * MIB if door == "h1" else 16 * MIB  # Python's QUIC clients read 10 MB a second
    backend.owes = length
    async with AsyncExitStack() as stack:
        client = await DOORS[door](stack, ("127.0.0.1", gateway.port))
        asked = await client.ask("down", b"{}")
        await eventually(lambda: backend.sent)
        assert await still(lambda: backend.sent) < length
        came = await asked.read(length + 1)
        assert len(came) == length
        assert came == owed(0, length)


@pytest.mark.parametrize("door", DOORS)
async def test_an_upload_waits_for_its_backend_and_goes_on_with_it(
    gateway: GatewayProgram, backend: HeavyBackend, door: str
) -> None:
    """100 MB are announced. The gateway takes them no further than its windows and the kernel's sockets go."""
    pid, address = gateway.program.pid, ("127.0.0.1", gateway.port)
    async with AsyncExitStack() as stack:
        clients = [await DOORS[door](stack, address) for _ in range(2)]
        before = resident_kib(pid)
        uploads = [await client.upload("up", OWED) for client in clients]
        await eventually(lambda: backend.asked == len(uploads))
        taken = await still(lambda: sum(each.taken for each in uploads))
        assert 0 < taken < len(uploads) * KERNEL
        assert resident_kib(pid) - before < len(uploads) * 8 * 1024
        assert backend.got == 0
        backend.reading.set()
        await eventually(lambda: sum(each.taken for each in uploads) > taken)
        await eventually(lambda: backend.got > taken)
        assert resident_kib(pid) - before < len(uploads) * 8 * 1024
        for each in uploads:
            each.leave()


async def test_token_streams_that_nobody_reads_are_bounded_and_end(
    gateway: GatewayProgram, backend: HeavyBackend
) -> None:
    """These would never end, and their backends would never be silent."""
    pid, address = gateway.program.pid, ("127.0.0.1", gateway.port)
    chat = section(b"/v1/chat/completions", (b"inferlane-class", b"hasty"))
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(http3(address, window=64 * 1024)) for _ in range(4)]
        before = resident_kib(pid)
        for client in clients:
            client.stall()
        asked = [client.send(chat, b'{"model": "tiny", "stream": true}') for client in clients for _ in range(10)]
        await eventually(lambda: backend.asked == len(asked))
        assert resident_kib(pid) - before < OWED // 1024
        await eventually(lambda: backend.connections == 0)
        assert gateway.metric("inferlane_in_flight") == 0
        assert resident_kib(pid) - before < OWED // 1024
