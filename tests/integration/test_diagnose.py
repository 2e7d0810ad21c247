# SPDX-License-Identifier: Apache-2.0
"""A gateway that breaks a promise, asked what broke it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.commands.diagnose_client import ask
from qos.promise import Part, Promise
from tests.fakes.live_gateway import LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.raw_quic import Exchange, RawClient, http3, section
from tests.fakes.raw_server import RawServer

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
CLASSES = """
  - {name: interactive, dscp: AF21, deadline: 60s, default: true}
  - {name: brief, dscp: LE, deadline: 200ms}
"""


@pytest.fixture
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def gateway(backend: RawServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """One place."""
    listener = "max_class: interactive, tls: development"
    conf = write_config(tmp_path, oip_pool(backend.port, slots=1), classes=CLASSES, listener=listener)
    async with live_gateway(conf) as started:
        yield started


def send(client: RawClient, traffic_class: str) -> Exchange:
    return client.send(section(b"/v2/models/m/infer", (b"inferlane-class", traffic_class.encode())), b"{}")


async def promises(gateway: LiveGateway) -> dict[str, Promise]:
    report = await asyncio.to_thread(ask, *gateway.admin)
    return {each.traffic_class: each for each in report.promises}


async def test_who_waited_in_vain_is_put_down_to_the_gate(gateway: LiveGateway, backend: RawServer) -> None:
    async with http3(gateway.address) as client:
        occupying = send(client, "interactive")
        peer = await backend.accept()
        await peer.request()
        assert (await send(client, "brief").over()).status == 504
        peer.say(ANSWER)
        assert (await occupying.over()).status == 200
        await gateway.nothing_in_flight()
    told = await promises(gateway)
    assert (told["interactive"].kept, told["interactive"].holds) == (1, True)
    assert (told["brief"].missed, told["brief"].holds) == (1, False)
    assert [each.part for each in told["brief"].breaches] == [Part.QUEUE]
    assert "raise classes[brief].gate.share" in told["brief"].words[1]


async def test_who_was_not_answered_is_put_down_to_the_backend(gateway: LiveGateway, backend: RawServer) -> None:
    async with http3(gateway.address) as client:
        asking = send(client, "brief")
        peer = await backend.accept()
        await peer.request()
        assert (await asking.over()).status == 504
        await gateway.nothing_in_flight()
    (breach,) = (await promises(gateway))["brief"].breaches
    assert breach.part is Part.BACKEND
    assert breach.median_s == pytest.approx(0.2, rel=0.2)
