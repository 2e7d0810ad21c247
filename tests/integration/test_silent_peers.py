# SPDX-License-Identifier: Apache-2.0
"""Clients of a whole gateway that acknowledge nothing, little or too much, and windows that never open.

Each costs a bounded part of what it is owed, for a bounded time; its backend is told; nobody else is disturbed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch

from proxy.listeners.quic import WRITE_AHEAD, Peer
from proxy.quic import configuration, untaken
from tests.fakes.live_gateway import LiveGateway, eventually, live_gateway, write_config
from tests.fakes.numbered_oip import INFER, MIB, answer_to, body_of, numbered_oip, ran_once
from tests.fakes.quiet_log import quiet_log
from tests.fakes.raw_quic import Exchange, RawClient, http3
from tests.fakes.raw_server import Peer as Backend
from tests.fakes.raw_server import RawServer
from tests.fakes.scripted_oip import ScriptedOip

CLASSES = """
  - {name: brief, dscp: EF, deadline: 2s}
  - {name: interactive, dscp: AF21, deadline: 60s, default: true}
"""
BRIEF = [*INFER, (b"inferlane-class", b"brief")]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
OWED = 64 * MIB
PIECE = 64 * 1024
CROWD = 100


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    async with numbered_oip() as server:
        yield server


@pytest.fixture
async def endless() -> AsyncIterator[RawServer]:
    """A backend whose answers are longer than any test."""
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
def idle_s() -> float:
    """After how long a silent connection ends."""
    return configuration.IDLE_TIMEOUT_S


@pytest.fixture
async def gateway(
    server: ScriptedOip, endless: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle_s: float
) -> AsyncIterator[LiveGateway]:
    monkeypatch.setattr(configuration, "IDLE_TIMEOUT_S", idle_s)
    pools = (
        f"[{{name: numbered, model: m, endpoints: [{{{server.endpoint}, slots: 128}}]}},"
        f' {{name: endless, model: endless, endpoints: [{{oip: "http://127.0.0.1:{endless.port}"}}]}}]'
    )
    conf = write_config(tmp_path, pools, classes=CLASSES, listener="max_class: brief, tls: development")
    with quiet_log():
        async with live_gateway(conf) as gateway:
            yield gateway


def endless_of(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value.replace(b"/m/", b"/endless/")) for name, value in fields]


def peers(gateway: LiveGateway) -> list[Peer]:
    """The gateway's side of every connection."""
    return [peer for side in gateway.gateway.doors[0]._sides if side.quic is not None for peer in side.quic._peers]


def owed(gateway: LiveGateway) -> int:
    """Bytes of replies that the gateway keeps until they are acknowledged."""
    streams = (each for peer in peers(gateway) for each in peer.quic._streams.items())
    return sum(len(stream.sender._buffer) for stream_id, stream in streams if stream_id % 4 == 0)


async def pour(backend: Backend) -> int:
    """Answer without end, until the gateway hangs up: bytes it took."""
    await backend.request()
    backend.say(HEAD % OWED + b"{")
    taken = 0
    with suppress(ConnectionError):
        while taken < OWED:
            backend.say(b" " * PIECE)
            taken += PIECE
            await backend.writer.drain()
    return taken


def acknowledge_nothing(client: RawClient) -> None:
    """It goes on talking."""

    def nothing(**_: object) -> None:
        for space in client.quic._spaces.values():
            space.ack_at = None

    client.quic._write_ack_frame = nothing  # type: ignore[assignment,method-assign]


async def chat(client: RawClient) -> None:
    while True:
        client.quic.send_ping(1)
        client.transmit()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("idle_s", [3.0])
@pytest.mark.parametrize("talking", [True, False])
async def test_a_long_reply_to_a_client_that_acknowledges_nothing(
    gateway: LiveGateway, endless: RawServer, talking: bool
) -> None:
    """Given up at its deadline, or with its connection."""
    async with http3(gateway.address) as client:
        acknowledge_nothing(client)
        asked = client.send(endless_of(BRIEF if talking else INFER), b"{}")
        pouring = asyncio.create_task(pour(await endless.accept()))
        talk = asyncio.create_task(chat(client)) if talking else None
        most = 0

        async def over() -> bool:
            nonlocal most
            most = max(most, owed(gateway))
            return pouring.done()

        await eventually(over)
        assert await pouring < OWED / 4
        assert 0 < most <= WRITE_AHEAD + 2 * PIECE
        assert 0 < len(asked.body) < PIECE  # what the first congestion window lets out, and no more
        await gateway.nothing_in_flight()
        assert await gateway.value("inferlane_requests_total", reason="deadline" if talking else "cancelled") == 1
        if talk is not None:
            assert owed(gateway) == 0 and len(peers(gateway)) == 1  # though the reset is not acknowledged, either
            talk.cancel()
    await gateway.reaches("inferlane_quic_connections", 0)
    assert owed(gateway) == 0


@pytest.mark.parametrize("idle_s", [3.0])
async def test_a_whole_reply_to_a_client_that_falls_silent_is_kept_until_it_is_idle(
    gateway: LiveGateway, server: ScriptedOip
) -> None:
    """The request is over; what is left of it goes with the connection."""
    async with http3(gateway.address) as client:
        acknowledge_nothing(client)
        client.send(INFER, body_of(1))
        await gateway.reaches("inferlane_requests_total", 1, reason="ok")
        assert owed(gateway) >= len(answer_to(1))
        await gateway.reaches("inferlane_quic_connections", 0)
    ran_once(server, [1])


async def test_a_whole_reply_that_is_never_taken_is_broken_off_though_its_client_talks(
    gateway: LiveGateway, server: ScriptedOip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untaken, "UNTAKEN_S", 1.0)
    async with http3(gateway.address, window=1) as client:
        client.stall()
        asked = client.send(INFER, body_of(1))
        await gateway.reaches("inferlane_requests_total", 1, reason="ok")
        talk = asyncio.create_task(chat(client))
        await asked.over()
        talk.cancel()
        assert asked.reset is not None
        assert owed(gateway) == 0
        assert client.terminated is None
    ran_once(server, [1])


@pytest.mark.parametrize("window", [0, 1])
async def test_a_window_that_never_opens(gateway: LiveGateway, endless: RawServer, window: int) -> None:
    async with http3(gateway.address, window=window) as client:
        client.stall()
        asked = client.send(endless_of(BRIEF), b"{}")
        pouring = asyncio.create_task(pour(await endless.accept()))
        await asked.over()  # at its deadline
        assert asked.reset is not None and len(asked.body) <= window
        assert await pouring < OWED / 4
        await gateway.nothing_in_flight()
        assert await gateway.value("inferlane_requests_total", reason="deadline") == 1
        assert client.terminated is None


async def test_a_client_that_trickles_acknowledgements_gets_everything(
    gateway: LiveGateway, server: ScriptedOip
) -> None:
    async with http3(gateway.address) as client:
        transport, newest = client._transport, list[bytes]()
        assert transport is not None
        client._transport = Trickle(newest)  # type: ignore[assignment]
        asked = client.send(INFER, body_of(1))
        over = asyncio.create_task(asked.over())
        while not over.done():
            if newest:
                transport.sendto(newest.pop(0))
                del newest[:-1]
            await asyncio.sleep(0.03)
        client._transport = transport
        assert (asked.status, bytes(asked.body)) == (200, answer_to(1))
    ran_once(server, [1])


class Trickle:
    """Instead of a transport: most of what is sent is lost."""

    def __init__(self, newest: list[bytes]) -> None:
        self._newest = newest

    def sendto(self, data: bytes, _: object = None) -> None:
        self._newest.append(data)


async def test_whoever_acknowledges_what_was_never_sent_is_hung_up_on(
    gateway: LiveGateway, server: ScriptedOip
) -> None:
    async with http3(gateway.address) as client, http3(gateway.address) as other:
        asked = client.send(endless_of(INFER), b"{}", end=False)
        client.quic._spaces[Epoch.ONE_RTT].ack_queue.add(1_000_000)
        client.quic.send_ping(1)
        client.transmit()
        await asked.over()
        assert client.terminated is not None
        assert client.terminated.error_code == QuicErrorCode.PROTOCOL_VIOLATION
        await gateway.nothing_in_flight()
        assert bytes((await other.ask(INFER, body_of(1))).body) == answer_to(1)


async def test_a_hundred_clients_that_read_byte_by_byte_disturb_nobody(
    gateway: LiveGateway, server: ScriptedOip
) -> None:
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(http3(gateway.address, window=1)) for _ in range(CROWD)]
        for client in slow:
            client.stall()
        asked = [client.send(BRIEF, body_of(number)) for number, client in enumerate(slow)]
        reading = asyncio.create_task(one_by_one(asked))
        async with http3(gateway.address) as other:
            for number in range(CROWD, CROWD + 30):
                answer = await other.ask(INFER, body_of(number))
                assert bytes(answer.body) == answer_to(number)
        await gateway.nothing_in_flight()
        assert len(peers(gateway)) >= CROWD
        assert owed(gateway) <= CROWD * len(answer_to(10 * CROWD))
        reading.cancel()
        assert not any(each.ended for each in asked)
    ran_once(server, range(CROWD + 30))
    await gateway.reaches("inferlane_quic_connections", 0)
    assert owed(gateway) == 0


async def one_by_one(asked: list[Exchange]) -> None:
    """One byte more for each, a few times a second."""
    while True:
        for each in asked:
            quic = each.client.quic
            stream = quic._streams.get(each.stream_id)
            if stream is not None:
                stream.max_stream_data_local += 1
                quic._local_max_data.value += 1
            each.client.read_on()
            each.client.stall()
            await asyncio.sleep(0.002)
