# SPDX-License-Identifier: Apache-2.0
"""A client that goes away takes its request along: out of the queue, off the backend, out of the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane import oip
from inferlane.wire import Type
from tests.fakes import models
from tests.fakes.live_gateway import LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.raw_quic import Exchange, RawClient, http3, section
from tests.fakes.raw_server import Peer, RawServer
from tests.fakes.raw_udp import RawUdpServer

INFER = b"/v2/models/m/infer"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
SCHEMES = ("https", "quic", "quic+datagram", "udp")
FOR_EVER = 1 << 62


@pytest.fixture
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def gateway(backend: RawServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """One place."""
    async with live_gateway(write_config(tmp_path, oip_pool(backend.port, slots=1))) as started:
        yield started


@pytest.fixture
async def client(gateway: LiveGateway) -> AsyncIterator[RawClient]:
    async with http3(gateway.address) as connected:
        yield connected


async def running(client: RawClient, backend: RawServer) -> tuple[Exchange, Peer]:
    """A request that the backend has and does not answer."""
    asking = client.send(section(INFER), b"{}")
    peer = await backend.accept()
    await peer.request()
    return asking, peer


async def serves(client: RawClient, backend: RawServer) -> None:
    asking, peer = await running(client, backend)
    peer.say(ANSWER)
    assert (await asking.over()).status == 200


WAYS: dict[str, Callable[[Exchange], None]] = {
    # A reset alone says nothing once the whole request is there (RFC 9000 section 3.2).
    "STOP_SENDING": lambda asking: asking.stop(),
    "a reset and STOP_SENDING": lambda asking: asking.abandon(),
    "a closed connection": lambda asking: asking.client.close(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_that_runs(gateway: LiveGateway, backend: RawServer, way: str) -> None:
    async with http3(gateway.address) as client:
        asking, peer = await running(client, backend)
        WAYS[way](asking)
        assert await peer.end() == b""
        await gateway.nothing_in_flight()
    assert await gateway.value("inferlane_requests_total", reason="cancelled") == 1
    async with http3(gateway.address) as client:
        await serves(client, backend)


@pytest.mark.parametrize("way", WAYS)
async def test_a_request_that_waits(gateway: LiveGateway, client: RawClient, backend: RawServer, way: str) -> None:
    asking, peer = await running(client, backend)
    async with http3(gateway.address) as other:
        waiting = other.send(section(INFER), b"{}")
        await gateway.reaches("inferlane_gate_waiting", 1)
        WAYS[way](waiting)
        await gateway.reaches("inferlane_gate_waiting", 0)
    assert await gateway.value("inferlane_in_flight") == 1
    peer.say(ANSWER)
    assert (await asking.over()).status == 200
    await gateway.nothing_in_flight()
    assert backend.accepted == 1
    assert await gateway.value("inferlane_requests_total", reason="cancelled") == 1


async def test_a_request_whose_body_is_still_coming(
    gateway: LiveGateway, client: RawClient, backend: RawServer
) -> None:
    small = client.send(section(INFER), b"part", end=False)
    long = client.send(section(INFER, (b"content-length", b"1000000")), bytes(10_000), end=False)
    peer = await backend.accept()
    await peer.head()
    small.cancel()
    long.cancel()
    await peer.end()
    await gateway.nothing_in_flight()
    assert backend.accepted == 1
    await serves(client, backend)


async def test_a_reply_that_is_still_coming(gateway: LiveGateway, client: RawClient, backend: RawServer) -> None:
    """The place is held as long as the backend sends, and no longer than the client reads."""
    asking, peer = await running(client, backend)
    peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{" + b" " * 100_000)
    await client.until(lambda: asking.body)
    assert await gateway.value("inferlane_in_flight") == 1
    asking.stop()
    await peer.end()
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_task_that_the_application_cancels(gateway: LiveGateway, backend: RawServer, scheme: str) -> None:
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        tasks = [asyncio.create_task(client.infer("m", {"x": np.zeros(4, np.float32)})) for _ in range(2)]
        peer = await backend.accept()
        await peer.request()
        await gateway.reaches("inferlane_gate_waiting", 1)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gateway.nothing_in_flight()
        assert await peer.end() == b""
        assert await gateway.value("inferlane_requests_total", reason="cancelled") == 2
        assert backend.accepted == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_model_that_runs(tmp_path: Path, scheme: str) -> None:
    """It would run for ages; the next request gets its thread."""
    models.saved(models.doubling(), tmp_path)
    conf = write_config(tmp_path, "[{name: m, model: m, endpoints: [{onnx: model.onnx}]}]")
    x = np.ones(1, np.float32)
    async with live_gateway(conf) as gateway, inferlane.Client(gateway.url(scheme), insecure=True) as client:
        task = asyncio.create_task(client.infer("m", {"times": np.array([FOR_EVER]), "x": x}))
        await gateway.reaches("inferlane_in_flight", 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await gateway.nothing_in_flight()
        reply = await client.infer("m", {"times": np.array([3]), "x": x})
        assert reply.outputs["y"].tolist() == [8.0]


async def test_a_model_that_is_too_slow_for_its_deadline(tmp_path: Path) -> None:
    models.saved(models.doubling(), tmp_path)
    conf = write_config(tmp_path, "[{name: m, model: m, endpoints: [{onnx: model.onnx}]}]")
    body, json_length = oip.encode_request({"times": np.array([FOR_EVER]), "x": np.ones(1, np.float32)})
    fields = (
        (b"inference-header-content-length", b"%d" % (json_length or 0)),
        (b"inferlane-timeout", b"300ms"),
    )
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        reply = await client.ask(section(INFER, *fields), body)
        assert (reply.status, reply.document["reason"]) == (504, "deadline")
        await gateway.nothing_in_flight()


async def test_a_datagram_backend_is_told(tmp_path: Path) -> None:
    server = RawUdpServer()
    await server.start()
    pools = f'[{{name: far, model: "*", endpoints: [{{datagram: "127.0.0.1:{server.port}"}}]}}]'
    async with live_gateway(write_config(tmp_path, pools)) as gateway, http3(gateway.address) as client:
        asking = client.send(section(INFER), b"{}")
        header, _ = await server.greet()
        asking.stop()
        while (told := (await server.receive())[0]).type is not Type.CANCEL:
            assert told.type is Type.REQUEST  # repeated meanwhile
        assert told.request_id == header.request_id
        await gateway.nothing_in_flight()
    server.close()
