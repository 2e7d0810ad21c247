# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: the clients are told, what is in flight finishes, what is new is refused, and the process ends with 0."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane import oip
from inferlane.errors import Reason, Refused
from tests.fakes import models
from tests.fakes.live_gateway import (
    GatewayProcess,
    Observed,
    eventually,
    gateway_process,
    oip_pool,
    parse_address,
    write_config,
)
from tests.fakes.raw_quic import Exchange, RawClient, http3, section
from tests.fakes.raw_server import Peer, RawServer

INFER = b"/v2/models/m/infer"
BODY, JSON_LENGTH = oip.encode_reply("m", "1", {"y": np.ones(2, np.float32)}, binary=True)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ninference-header-content-length: %d\r\n\r\n%b" % (
    len(BODY),
    JSON_LENGTH or 0,
    BODY,
)


@pytest.fixture
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def gateway(backend: RawServer, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(write_config(tmp_path, oip_pool(backend.port, slots=1))) as started:
        yield started


async def running(client: RawClient, backend: RawServer) -> tuple[Exchange, Peer]:
    """A request that the backend has and does not answer."""
    asking = client.send(section(INFER), b"{}")
    peer = await backend.accept()
    await peer.request()
    return asking, peer


async def drained(gateway: GatewayProcess, *, unfinished: int = 0) -> None:
    """It has ended in good order."""
    assert (await gateway.event("drained"))["unfinished"] == unfinished
    assert await gateway.exit_code() == 0
    assert not any("Traceback" in line for line in gateway.lines)


async def test_an_idle_gateway_ends(gateway: GatewayProcess) -> None:
    await gateway.address()
    gateway.signal(signal.SIGTERM)
    await drained(gateway)


async def test_an_interrupt_from_the_keyboard_is_the_same(gateway: GatewayProcess) -> None:
    await gateway.address()
    gateway.signal(signal.SIGINT)
    await drained(gateway)


async def test_a_connection_without_requests_is_told_and_closed(gateway: GatewayProcess) -> None:
    async with http3(await gateway.address()) as client:
        assert (await client.ask(section(b"/v2/health/live", method=b"GET"))).status == 200
        gateway.signal(signal.SIGTERM)
        await client.until(lambda: client.terminated is not None)
        assert client.terminated is not None
        assert client.terminated.error_code == 0x100  # H3_NO_ERROR
    await drained(gateway)


async def test_what_is_in_flight_finishes_and_what_is_new_is_refused(
    gateway: GatewayProcess, backend: RawServer
) -> None:
    """One runs, one waits for its place, one has sent half of its body."""
    observed = await gateway.observed()
    async with http3(await gateway.address()) as client:
        runs, peer = await running(client, backend)
        waits = client.send(section(INFER), b"{}")
        sends = client.send(section(INFER), b"{", end=False)
        await observed.reaches("inferlane_gate_waiting", 1)
        assert (await observed.get("/readyz"))[0] == 200
        gateway.signal(signal.SIGTERM)
        await client.until(lambda: client.goaway is not None)
        assert client.goaway == sends.stream_id + 4
        status, page = await observed.get("/readyz")
        assert (status, json.loads(page)["not_ready"]) == (503, ["draining"])
        late = await client.ask(section(INFER), b"{}")
        assert (late.status, late.document["reason"]) == (503, "draining")
        assert b"retry-after" in late.head
        assert (await client.ask(section(b"/v2/health/ready", method=b"GET"))).status == 503
        peer.say(ANSWER)
        assert (await runs.over()).status == 200
        await peer.request()
        peer.say(ANSWER)
        assert (await waits.over()).status == 200
        sends.send(b"}", end=True)
        _, body = await peer.request()
        assert body == b"{}"
        peer.say(ANSWER)
        assert (await sends.over()).status == 200
    await drained(gateway)


@pytest.mark.parametrize("scheme", ["https", "quic", "quic+datagram", "udp"])
async def test_the_client_library_gets_its_answer(gateway: GatewayProcess, backend: RawServer, scheme: str) -> None:
    x = {"x": np.ones(2, np.float32)}
    host, port = await gateway.address()
    observed = await gateway.observed()
    async with inferlane.Client(f"{scheme}://{host}:{port}", insecure=True) as client:
        first = asyncio.create_task(client.infer("m", x))
        peer = await backend.accept()
        await peer.request()
        gateway.signal(signal.SIGTERM)

        await gateway.event("draining")  # every worker knows; /readyz says so a moment before the first of them does
        assert (await observed.get("/readyz"))[0] == 503
        if scheme != "https":  # there GOAWAY has told the library, which does not even ask
            with pytest.raises(Refused) as caught:
                await client.infer("m", x)
            assert (caught.value.status, caught.value.reason) == (503, Reason.DRAINING)
        peer.say(ANSWER)
        assert (await first).outputs["y"].tolist() == [1, 1]
    await drained(gateway)


async def test_a_second_signal_changes_nothing(gateway: GatewayProcess, backend: RawServer) -> None:
    """Supervisors that signal a process and its group deliver two."""
    async with http3(await gateway.address()) as client:
        asking, peer = await running(client, backend)
        for _ in range(2):
            gateway.signal(signal.SIGTERM)
            await client.until(lambda: client.goaway is not None)
        peer.say(ANSWER)
        assert (await asking.over()).status == 200
    await drained(gateway)


async def test_a_deadline_ends_the_waiting_for_a_backend_that_never_answers(
    gateway: GatewayProcess, backend: RawServer
) -> None:
    async with http3(await gateway.address()) as client:
        asking = client.send(section(INFER, (b"inferlane-timeout", b"1s")), b"{}")
        await (await backend.accept()).request()
        gateway.signal(signal.SIGTERM)
        await asking.over()
        assert (asking.status, asking.document["reason"]) == (504, "deadline")
    await drained(gateway)


async def test_a_new_connection_is_not_taken(gateway: GatewayProcess, backend: RawServer) -> None:
    address = await gateway.address()
    observed = await gateway.observed()
    async with http3(address) as client:
        asking, peer = await running(client, backend)
        gateway.signal(signal.SIGTERM)
        await client.until(lambda: client.goaway is not None)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"\xc0\0\0\0\x01\x08" + bytes(8) + b"\x08" + bytes(8) + b"\0\x44\0" + bytes(1200), address)
            await observed.reaches("inferlane_datagrams_dropped_total", 1, reason="draining")
        assert await observed.value("inferlane_quic_connections") == 1
        peer.say(ANSWER)
        assert (await asking.over()).status == 200
    await drained(gateway)


async def test_a_signal_while_models_load_ends_the_process_as_it_always_does(tmp_path: Path) -> None:
    """Nothing is served yet, so there is nothing to finish, and a model may take minutes."""
    models.saved(models.slow_to_warm_up(), tmp_path)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        admin = "{}:{}".format(*sock.getsockname())
    conf = write_config(tmp_path, "[{name: m, model: m, endpoints: [{onnx: model.onnx}]}]", admin=admin)
    async with gateway_process(conf) as gateway:
        observed = Observed(parse_address(admin))

        async def starting() -> bool:
            try:
                return (await observed.get("/readyz"))[0] == 503
            except ConnectionRefusedError:
                return False

        await eventually(starting)
        status, page = await observed.get("/readyz")
        assert (status, json.loads(page)["not_ready"]) == (503, ["pool m"])
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == -signal.SIGTERM
        assert gateway.lines == []
