# SPDX-License-Identifier: Apache-2.0
"""Clients of a whole gateway behind a NAT that forgets them again and again, in the middle of a MiB up and one down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import curl_cffi
import numpy as np
import pytest
from curl_cffi import CurlHttpVersion

import inferlane
from tests.fakes.live_gateway import PATIENCE_S, LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.numbered_oip import INFER, LONG, MIB, answer_to, body_of, numbered_oip, ran_once
from tests.fakes.quiet_log import quiet_log
from tests.fakes.raw_quic import http3
from tests.fakes.rough_path import Roughness, RoughPath, rough_path
from tests.fakes.scripted_oip import ScriptedOip

MOVING = {
    "near": Roughness(rebinding_every=200),
    "far": Roughness(delay_s=0.004, rebinding_every=200),
}
# Without loss: where the first packets to a new address are lost, a client that only waits is not found again until it
# says something, and RFC 9000 section 8.1 lets nobody send more than three times what came from there.
MOVING_ON_A_ROUGH_PATH = Roughness(reordering=0.02, duplicates=0.05, delay_s=0.002, rebinding_every=400)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    async with numbered_oip() as server:
        yield server


@pytest.fixture
async def gateway(server: ScriptedOip, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    with quiet_log():
        async with live_gateway(write_config(tmp_path, oip_pool(server.port))) as gateway:
            yield gateway


@asynccontextmanager
async def moving(gateway: LiveGateway, server: ScriptedOip, how: Roughness) -> AsyncIterator[RoughPath]:
    """Afterwards it was one request on one connection, at several addresses, and nothing of it is left."""
    async with rough_path(gateway.address, how) as path:
        yield path
        assert path.counts["rebound"] >= 4
        ran_once(server, [5])
        assert await gateway.value("inferlane_quic_handshakes_total") == 1
        await gateway.nothing_in_flight()
        await gateway.reaches("inferlane_quic_connections", 0)


@pytest.mark.parametrize("path_is", MOVING)
async def test_a_client_on_aioquic(gateway: LiveGateway, server: ScriptedOip, path_is: str) -> None:
    async with moving(gateway, server, MOVING[path_is]) as path, http3(path.address) as client:
        exchange = await client.ask([*INFER, (b"content-length", b"%d" % MIB)], body_of(5, MIB))
        assert (exchange.status, bytes(exchange.body)) == (200, answer_to(5, LONG))
        assert server.asked[0].body == body_of(5, MIB)
        path.calm()


@pytest.mark.parametrize("path_is", MOVING)
async def test_curl(gateway: LiveGateway, server: ScriptedOip, path_is: str) -> None:
    async with (
        moving(gateway, server, MOVING[path_is]) as path,
        curl_cffi.AsyncSession(http_version=CurlHttpVersion.V3ONLY, verify=False) as session,
    ):
        url = "https://{}:{}/v2/models/m/infer".format(*path.address)
        answer = await session.post(url, data=body_of(5, MIB), timeout=PATIENCE_S)
        assert (answer.status_code, answer.content) == (200, answer_to(5, LONG))
        assert server.asked[0].body == body_of(5, MIB)
        path.calm()


@pytest.mark.parametrize("scheme", ["https", "quic"])
async def test_our_own_on_a_rough_path(gateway: LiveGateway, server: ScriptedOip, scheme: str) -> None:
    x = np.full(MIB // 4, 5, np.int32)
    async with (
        moving(gateway, server, MOVING_ON_A_ROUGH_PATH) as path,
        inferlane.Client("{}://{}:{}".format(scheme, *path.address), insecure=True) as client,
    ):
        reply = await client.infer("m", {"x": x}, timeout=PATIENCE_S)
        assert np.array_equal(reply.outputs["y"], np.full(LONG, 5, np.int32))
        assert server.asked[0].body.endswith(x.tobytes())
        path.calm()
