# SPDX-License-Identifier: Apache-2.0
"""Real clients of a whole gateway over paths that lose, delay, reorder, double and damage packets.

Whatever the path does: answers are exact, nothing runs twice, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import curl_cffi
import numpy as np
import pytest
from curl_cffi import CurlHttpVersion

import inferlane
from tests.fakes.live_gateway import PATIENCE_S, LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.numbered_oip import INFER, VALUES, answer_to, body_of, numbered_oip, ran_once
from tests.fakes.quiet_log import quiet_log
from tests.fakes.raw_quic import http3
from tests.fakes.rough_path import Roughness, RoughPath, rough_path
from tests.fakes.scripted_oip import ScriptedOip

FAULTS = {
    "loss": Roughness(loss=0.2),
    "reordering": Roughness(reordering=0.25, delay_s=0.002),
    "duplicates": Roughness(duplicates=0.05),
    "corruption": Roughness(corruption=0.02),
    "delay": Roughness(delay_s=0.05),
    "all": Roughness(loss=0.1, reordering=0.25, duplicates=0.05, corruption=0.01, delay_s=0.005),
}
HAPPENS = {
    "loss": {"lost"},
    "reordering": {"reordered"},
    "duplicates": {"doubled"},
    "corruption": {"corrupted"},
    "delay": set(),
    "all": {"lost", "reordered", "doubled"},
}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    async with numbered_oip() as server:
        yield server


@pytest.fixture
async def gateway(server: ScriptedOip, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    with quiet_log():
        async with live_gateway(write_config(tmp_path, oip_pool(server.port, slots=64))) as gateway:
            yield gateway


@asynccontextmanager
async def path_with(gateway: LiveGateway, fault: str, *, seed: int) -> AsyncIterator[RoughPath]:
    """Afterwards it did what it should, and everybody has gone: the test calms it before they say goodbye."""
    async with rough_path(gateway.address, FAULTS[fault], seed=seed) as path:
        yield path
        assert HAPPENS[fault] <= {kind for kind, count in path.counts.items() if count}, path
        await gateway.nothing_in_flight()
        await gateway.reaches("inferlane_quic_connections", 0)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_answer_is_exact_over_http_3(gateway: LiveGateway, server: ScriptedOip, fault: str) -> None:
    async with path_with(gateway, fault, seed=1) as path:
        async with http3(path.address) as client:
            for numbers in (range(6), range(6, 12)):
                asked = [client.send(INFER, body_of(number)) for number in numbers]
                for number, exchange in zip(numbers, asked, strict=True):
                    await exchange.over()
                    assert (exchange.status, bytes(exchange.body)) == (200, answer_to(number))
            path.calm()
        ran_once(server, range(12))


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_answer_is_exact_for_curl(gateway: LiveGateway, server: ScriptedOip, fault: str) -> None:
    """libcurl on ngtcp2."""
    async with path_with(gateway, fault, seed=2) as path:
        url = "https://{}:{}/v2/models/m/infer".format(*path.address)
        async with curl_cffi.AsyncSession(http_version=CurlHttpVersion.V3ONLY, verify=False) as session:
            first = await session.post(url, data=body_of(0), timeout=PATIENCE_S)
            more = [session.post(url, data=body_of(number), timeout=PATIENCE_S) for number in range(1, 9)]
            for number, answer in enumerate([first, *await asyncio.gather(*more)]):
                assert (answer.status_code, answer.content) == (200, answer_to(number))
            path.calm()
        ran_once(server, range(9))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scheme", ["quic", "quic+datagram"])
async def test_every_answer_is_exact_by_stream_and_by_datagram(
    gateway: LiveGateway, server: ScriptedOip, scheme: str, fault: str
) -> None:
    async with (
        path_with(gateway, fault, seed=3) as path,
        inferlane.Client("{}://{}:{}".format(scheme, *path.address), insecure=True) as client,
    ):
        await ask(client, server)
        path.calm()


@pytest.mark.parametrize("fault", [each for each in FAULTS if each not in ("corruption", "all")])
async def test_every_answer_is_exact_over_plain_datagrams(
    gateway: LiveGateway, server: ScriptedOip, fault: str
) -> None:
    """Nothing but the UDP checksum guards these against damage, and the one that the path makes is right."""
    async with (
        path_with(gateway, fault, seed=4) as path,
        inferlane.Client("udp://{}:{}".format(*path.address)) as client,
    ):
        await ask(client, server)


async def ask(client: inferlane.Client, server: ScriptedOip) -> None:
    tensors = [np.full(500, number, np.int32) for number in range(16)]
    replies = await asyncio.gather(*(client.infer("m", {"x": x}, timeout=PATIENCE_S) for x in tensors))
    for number, reply in enumerate(replies):
        assert np.array_equal(reply.outputs["y"], np.full(VALUES, number, np.int32))
    ran_once(server, range(16))
