# SPDX-License-Identifier: Apache-2.0
"""`accept: h1`: clients that cannot do HTTP/3 get the same walk over TLS on TCP. Triton's own client, and raw ones."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from inferlane.oip import encode_request
from proxy.listeners.tcp_marks import arrived_ds_field
from qos.marking import Mark, socket_options
from tests.fakes import models
from tests.fakes.live_gateway import LiveGateway, eventually, gateway_process, live_gateway, oip_pool, write_config
from tests.fakes.models import linear
from tests.fakes.raw_server import RawServer

EF, LE = 46 << 2, 1 << 2
X = np.random.default_rng(7).standard_normal((3, 8), np.float32)
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"


@pytest.fixture
def triton(gateway) -> Iterator[InferenceServerClient]:
    """As its users make it, but for the authority that signed the test's certificate."""
    with InferenceServerClient(
        f"127.0.0.1:{gateway.port}", ssl=True, ssl_options={"ca_certs": str(gateway.ca)}, concurrency=4
    ) as connected:
        yield connected


def tensor(array: np.ndarray, *, binary: bool = True) -> InferInput:
    made = InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_triton_s_client_works_unchanged(triton, directly):
    assert triton.is_server_live() and triton.is_model_ready("linear") and not triton.is_model_ready("unheard-of")
    assert triton.get_model_metadata("identity-fp16")["inputs"] == [
        {"name": "x", "datatype": "FP16", "shape": [-1, -1]}
    ]
    expected = directly(linear(), {"x": X})
    for binary in (True, False):
        wanted = [InferRequestedOutput("y", binary_data=binary), InferRequestedOutput("z", binary_data=not binary)]
        answer = triton.infer("linear", [tensor(X, binary=binary)], outputs=wanted)
        assert all(answer.as_numpy(name).tobytes() == array.tobytes() for name, array in expected.items())


def test_triton_s_client_with_several_at_once_and_what_it_says_of_refusals(triton):
    arrays = [np.full((1, 8), index, np.float32) for index in range(16)]
    asked = [triton.async_infer("identity-fp32", [tensor(each)]) for each in arrays]
    assert all((one.get_result().as_numpy("y") == each).all() for one, each in zip(asked, arrays, strict=True))
    with pytest.raises(InferenceServerException, match="unheard-of"):
        triton.infer("unheard-of", [tensor(X)])


def test_a_large_tensor_there_and_back(triton):
    large = np.arange(1 << 20, dtype=np.float32).reshape(2, -1)
    assert (triton.infer("identity-fp32", [tensor(large)]).as_numpy("y") == large).all()


def test_its_replies_tell_of_http_3_and_its_connections_are_counted(gateway):
    before = gateway.metric("inferlane_tcp_handshakes_total", listener="main")
    with urllib.request.urlopen(f"{gateway.url()}/v2", context=ssl.create_default_context(cafile=gateway.ca)) as reply:
        assert json.load(reply)["name"] == "inferlane"
        assert reply.headers["Alt-Svc"] == f'h3=":{gateway.port}"; ma=86400'
    assert gateway.metric("inferlane_tcp_handshakes_total", listener="main") == before + 1
    assert gateway.metric("inferlane_requests_total", transport="h1", reason="ok") > 0


@pytest.fixture
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def live(backend: RawServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """One place."""
    async with live_gateway(write_config(tmp_path, oip_pool(backend.port, slots=1))) as started:
        yield started


async def dial(address: tuple[str, int], folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    client = ssl.create_default_context(cafile=folder / "development.pem")
    return await asyncio.open_connection(*address, ssl=client)


async def test_a_client_that_leaves_frees_its_place_and_its_backend(live, backend, tmp_path):
    _, writer = await dial(live.address, tmp_path)
    writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
    peer = await backend.accept()
    await peer.request()
    writer.transport.abort()
    assert await peer.end() == b""
    await live.nothing_in_flight()
    assert await live.value("inferlane_requests_total", reason="cancelled", transport="h1") == 1


async def test_a_client_that_leaves_the_queue_makes_room(live, backend, tmp_path):
    served, serving = await dial(live.address, tmp_path)
    serving.write(POST + b"Content-Length: 2\r\n\r\n{}")
    peer = await backend.accept()
    await peer.request()
    _, waiting = await dial(live.address, tmp_path)
    waiting.write(POST + b"Content-Length: 2\r\n\r\n{}")
    await live.reaches("inferlane_gate_waiting", 1)
    waiting.transport.abort()
    await live.reaches("inferlane_gate_waiting", 0)
    peer.say(ANSWER)
    assert (await served.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
    serving.transport.abort()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_requests_carry_the_mark_of_their_class_both_ways(tmp_path, host):
    """What came last, a client's kernel tells on IPv6 only."""
    models.saved(models.identity("FP32", ("rows", "columns")), tmp_path)
    conf = write_config(tmp_path, f"[{{name: identity, model: '*', endpoints: [{{onnx: {tmp_path}/model.onnx}}]}}]")
    conf.write_text(
        conf.read_text()
        .replace('"127.0.0.0/8"', '"127.0.0.0/8", "::1/128"')
        .replace('"127.0.0.1:0"]', f'"{bind(host)}"]')
    )
    body, json_length = encode_request({"x": np.zeros((1, 4), np.float32)})
    fields = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n" % (json_length or len(body), len(body))
    loop, seen, told = asyncio.get_running_loop(), [], []
    async with live_gateway(conf) as live:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setblocking(False)
        for option in socket_options(sock.family, Mark(46, 6)):
            sock.setsockopt(*option)
        listen(sock)
        await loop.sock_connect(sock, live.address)
        client = ssl.create_default_context(cafile=tmp_path / "development.pem")
        reader, writer = await asyncio.open_connection(sock=sock, ssl=client, server_hostname="localhost")
        seen.append(arrived_ds_field(sock) & 0xFC)
        for name in (b"background", b"realtime", b"background"):
            writer.write(POST + b"Inferlane-Class: " + name + b"\r\n" + fields + b"\r\n" + body)
            head = await reader.readuntil(b"\r\n\r\n")
            told.append(b"inferlane-dscp: 46" in head.lower())
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            seen.append(arrived_ds_field(sock) & 0xFC)
        writer.close()
    assert told == [True] * 3
    assert seen == ([EF, LE, EF, LE] if ":" in host else [0] * 4)


def bind(host: str) -> str:
    return f"[{host}]:0" if ":" in host else f"{host}:0"


def listen(sock: socket.socket) -> None:
    """Have the kernel keep the marks of what comes."""
    level, name = (socket.IPPROTO_IPV6, 66) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, 13)
    sock.setsockopt(level, name, 1)


async def test_a_restart_finishes_what_is_in_flight_and_lets_go_of_idle_clients(backend, tmp_path):
    """The gateway as it ships: another event loop than the tests'."""
    async with gateway_process(write_config(tmp_path, oip_pool(backend.port))) as process:
        address = await process.address()
        idle, idling = await dial(address, tmp_path)
        reader, writer = await dial(address, tmp_path)
        writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
        peer = await backend.accept()
        await peer.request()
        process.signal(signal.SIGTERM)
        assert await idle.read() == b""
        peer.say(ANSWER)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"{}")
        assert b"connection: close" in answer.lower()
        for each in (idling, writer):
            each.close()
        assert await process.exit_code() == 0


async def test_two_hundred_clients_that_say_nothing_disturb_nobody(live, backend, tmp_path):
    async def silent() -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection(*live.address)
        return writer

    silent_ones = [await silent() for _ in range(200)]
    reader, writer = await dial(live.address, tmp_path)
    writer.write(POST + b"Content-Length: 2\r\n\r\n{}")
    peer = await backend.accept()
    await peer.request()
    peer.say(ANSWER)
    assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
    for each in (*silent_ones, writer):
        each.transport.abort()
    http1 = live.gateway.doors[0].http1
    assert http1 is not None

    async def forgotten() -> bool:
        return http1.connections == 0 and http1.connections_dropped.get("handshake_failed", 0) == len(silent_ones)

    await eventually(forgotten)


async def test_strangers_on_the_port_get_no_further_than_the_handshake(live, tmp_path):
    for words in (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b"\0" * 1000):
        reader, writer = await asyncio.open_connection(*live.address)
        writer.write(words)
        with suppress(ConnectionResetError):
            assert b"HTTP" not in await reader.read()
        writer.close()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError):
        await asyncio.open_connection(*live.address, ssl=old)
    assert await live.value("inferlane_requests_total") == 0
