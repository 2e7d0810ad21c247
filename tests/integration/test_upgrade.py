# SPDX-License-Identifier: Apache-2.0
"""SIGUSR2: what is on disk now serves beside what ran, and takes over, and nobody's request fails because of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import curl_cffi
import msgspec
import numpy as np
import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from curl_cffi import CurlHttpVersion

import inferlane
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import GatewayProcess, Observed, eventually, gateway_process, oip_pool, write_config
from tests.fakes.oip_server import OipServer
from tests.fakes.openai_server import OpenAiServer, Script
from tests.fakes.raw_quic import http3, section
from tests.fakes.raw_server import RawServer

PATIENCE_S = 90.0
"""Starting a generation is starting Python some times over."""
PAUSE_S = 0.02
X = np.ones(2, np.float32)
INFER = section(b"/v2/models/m/infer")


@pytest.fixture
async def backend() -> AsyncIterator[OipServer]:
    server = OipServer(7)
    await server.start()
    yield server
    await server.die()


def conf_of(folder: Path, backend: OipServer, *, listener: str = "tls: development") -> Path:
    conf = write_config(folder, oip_pool(backend.port, slots=64), listener=listener)
    conf.write_text(f"{conf.read_text()}workers: 2\n")
    return conf


async def workers(observed: Observed) -> list[dict[str, Any]]:
    """As /v1/workers tells them; while the supervisor gives way to another program, nobody answers for a moment."""
    while True:
        with suppress(OSError):
            _, page = await observed.get("/v1/workers")
            return list(msgspec.json.decode(page)["workers"])
        await asyncio.sleep(0.05)


async def upgraded(gateway: GatewayProcess, observed: Observed, generation: int, *, alone: bool = True) -> None:
    """Until it serves, the supervisor runs the program on disk, and, alone, nobody is there besides."""

    async def there() -> bool:
        told = sum('"event":"supervisor_upgraded"' in line for line in gateway.lines)
        seen = {(each["generation"], each["current"]) for each in await workers(observed)}
        return told >= generation and (generation, True) in seen and (len(seen) == 1 or not alone)

    async with asyncio.timeout(PATIENCE_S):
        while not await there():
            await asyncio.sleep(0.1)


class Load:
    """Clients that ask without pause, each over a transport of its own, and what they were told."""

    def __init__(self, address: tuple[str, int], folder: Path) -> None:
        self.address = address
        self.folder = folder
        self.told: dict[str, Counter[object]] = defaultdict(Counter)
        self.connections = 0
        self.ending = asyncio.Event()

    async def http3(self) -> None:
        """Moves when it is told to, as RFC 9114 section 5.2 has it."""
        while not self.ending.is_set():
            async with http3(self.address) as client:
                self.connections += 1
                while client.goaway is None and client.terminated is None and not self.ending.is_set():
                    self.told["h3"][(await client.ask(INFER, b"{}")).status] += 1
                    await asyncio.sleep(PAUSE_S)

    async def libcurl(self) -> None:
        """HTTP/3 by a client that nobody here wrote."""
        url = "https://{}:{}/v2/models/m/infer".format(*self.address)
        async with curl_cffi.AsyncSession(http_version=CurlHttpVersion.V3ONLY, verify=False) as session:
            while not self.ending.is_set():
                self.told["libcurl"][(await session.post(url, data=b"{}", timeout=PATIENCE_S)).status_code] += 1
                await asyncio.sleep(PAUSE_S)

    async def library(self, scheme: str) -> None:
        """Three at once over one connection, so that it is never quiet."""
        async with inferlane.Client("{}://{}:{}".format(scheme, *self.address), insecure=True) as client:

            async def ask() -> None:
                while not self.ending.is_set():
                    outputs = (await client.infer("m", {"x": X}, timeout=PATIENCE_S)).outputs
                    self.told[scheme][int(outputs["y"][0])] += 1
                    await asyncio.sleep(PAUSE_S)

            await asyncio.gather(ask(), ask(), ask())

    async def http1(self) -> None:
        """One connection for as long as it is kept."""
        while not self.ending.is_set():
            async with h1_client(self.address, self.folder) as client:
                keeps = True
                while keeps and not self.ending.is_set():
                    client.send("/v2/models/m/infer")
                    answer = await client.answer()
                    self.told["h1"][answer.status] += 1
                    keeps = answer.fields.get("connection", "") != "close"
                    await asyncio.sleep(PAUSE_S)


async def test_no_request_fails_in_two_upgrades(tmp_path: Path, backend: OipServer) -> None:
    conf = conf_of(tmp_path, backend, listener="accept: [h3, stream, datagram, udp, h1], tls: development")
    async with gateway_process(conf) as gateway:
        address, observed = await gateway.address(), await gateway.observed()
        pid = gateway.pid
        load = Load(address, tmp_path)
        answered = 0.0
        async with asyncio.TaskGroup() as group:
            for each in (load.http3, load.http3, load.libcurl, load.http1):
                group.create_task(each())
            for scheme in ("quic", "quic+datagram", "udp"):
                group.create_task(load.library(scheme))
            for generation, count in ((1, 3), (2, 1)):
                conf.write_text(re.sub(r"workers: \d", f"workers: {count}", conf.read_text()))
                gateway.signal(signal.SIGUSR2)
                await upgraded(gateway, observed, generation)
                assert len(await workers(observed)) == count
                before, answered = answered, await observed.value("inferlane_requests_total", reason="ok")
                assert answered > before
            load.ending.set()
        assert {kind: set(told) for kind, told in load.told.items()} == {
            "h3": {200}, "libcurl": {200}, "h1": {200}, "quic": {7}, "quic+datagram": {7}, "udp": {7}
        }  # fmt: skip
        assert load.connections >= 6
        assert gateway.pid == pid
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
        assert (await gateway.event("drained"))["unfinished"] == 0
        assert [line for line in gateway.lines if "Traceback" in line] == []


async def test_in_a_flood_of_handshakes(tmp_path: Path, backend: OipServer) -> None:
    """Of clients that never go on; those that do are served by one generation or the other."""
    flood = []
    for _ in range(200):
        quic = QuicConnection(configuration=QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
        quic.connect(("127.0.0.1", 1), now=0.0)
        flood += [datagram for datagram, _ in quic.datagrams_to_send(now=0.0)]
    async with gateway_process(conf_of(tmp_path, backend)) as gateway:
        address, observed = await gateway.address(), await gateway.observed()
        load = Load(address, tmp_path)

        async def flooding() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(address)
                sock.setblocking(False)
                for datagram in itertools.cycle(flood):
                    if load.ending.is_set():
                        return
                    with suppress(OSError):
                        sock.send(datagram)
                    await asyncio.sleep(0.01)

        async def coming() -> None:
            while not load.ending.is_set():
                async with http3(address) as client:
                    load.told["new"][(await client.ask(INFER, b"{}")).status] += 1
                await asyncio.sleep(PAUSE_S)

        async with asyncio.TaskGroup() as group:
            for each in (flooding, coming, coming, load.http3):
                group.create_task(each())
            gateway.signal(signal.SIGUSR2)
            await upgraded(gateway, observed, 1, alone=False)
            load.ending.set()
        assert {kind: set(told) for kind, told in load.told.items()} == {"new": {200}, "h3": {200}}


@pytest.fixture
async def slow() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


async def test_what_was_begun_before_ends_where_it_began(tmp_path: Path, slow: RawServer) -> None:
    """A slow upload, a request that runs, over HTTP/3 and over HTTP/1.1, and a token stream."""
    backend, going_on = slow, asyncio.Event()

    async def pace(number: int) -> None:
        if number == 1:
            await going_on.wait()

    chat = OpenAiServer(Script(pace=pace))
    await chat.start()
    pools = f"""[{{name: far, model: m, endpoints: [{{oip: "http://127.0.0.1:{backend.port}", slots: 16}}]}},
      {{name: chat, model: tiny, endpoints: [{{openai: "{chat.url}", slots: 16}}]}}]"""
    conf = write_config(tmp_path, pools, listener="accept: [h3, h1], tls: development")
    async with gateway_process(conf) as gateway:
        address, observed = await gateway.address(), await gateway.observed()
        async with http3(address) as client, h1_client(address, tmp_path) as plain:
            runs = client.send(INFER, b"{}")
            running = await backend.accept()
            await running.request()
            plain.send("/v2/models/m/infer")
            plainly = await backend.accept()
            await plainly.request()
            streams = client.send(section(b"/v1/chat/completions"), b'{"model":"tiny","stream":true,"messages":[]}')
            await client.until(lambda: b"Hel" in streams.body)
            sends = client.send([*INFER, (b"content-length", b"%d" % (1 << 20))], bytes(500_000), end=False)
            gateway.signal(signal.SIGUSR2)
            await upgraded(gateway, observed, 1, alone=False)
            assert client.goaway is not None
            running.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            assert (await runs.over()).status == 200
            plainly.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            answer = await plain.answer()
            assert (answer.status, answer.fields["connection"]) == (200, "close")
            going_on.set()
            assert (await streams.over()).ended and streams.body.endswith(b"data: [DONE]\n\n")
            sends.send(bytes((1 << 20) - 500_000), end=True)
            uploaded = await backend.accept()
            _, body = await uploaded.request()
            assert len(body) == 1 << 20
            uploaded.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            assert (await sends.over()).status == 200
            await client.until(lambda: client.terminated is not None)
            assert client.terminated is not None and client.terminated.error_code == 0x100  # H3_NO_ERROR
        await upgraded(gateway, observed, 1)
    await chat.close()


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("a file that is no config any more", "gateway.yaml:1:1"),
        ("tls: {cert: no.pem, key: no.key}", "no.pem: no such file"),
        ('bind: ["127.0.0.1:1"]', "listeners cannot change their addresses in an upgrade: main was at"),
        ("onnx: nowhere.onnx", "nowhere.onnx"),
    ],
)
async def test_what_cannot_start_changes_nothing(tmp_path: Path, backend: OipServer, written: str, why: str) -> None:
    conf = conf_of(tmp_path, backend)
    async with gateway_process(conf) as gateway:
        observed = await gateway.observed()
        before = [each["pid"] for each in await workers(observed)]
        async with http3(await gateway.address()) as client:
            assert (await client.ask(INFER, b"{}")).status == 200
            conf.write_text(_other(conf.read_text(), written))
            gateway.signal(signal.SIGUSR2)
            assert why in (await gateway.event("upgrade_failed"))["detail"]
            assert (await client.ask(INFER, b"{}")).status == 200 and client.goaway is None
        assert [each["pid"] for each in await workers(observed)] == before
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0


def _other(text: str, written: str) -> str:
    """A config with something else in the place of what it had."""
    key, _, value = written.partition(": ")
    if not value:
        return written
    if key == "onnx":
        return re.sub(r'oip: "[^"]*"', written, text)
    return re.sub(rf'{key}: (development|\["[^"]*"\])', written, text)


async def test_a_new_worker_that_is_killed_before_all_are_ready_ends_the_upgrade(
    tmp_path: Path, backend: OipServer
) -> None:
    async with gateway_process(conf_of(tmp_path, backend)) as gateway:
        observed = await gateway.observed()
        before = [each["pid"] for each in await workers(observed)]
        gateway.signal(signal.SIGUSR2)
        await gateway.event("upgrade_begins")
        gateway.signal(signal.SIGUSR2)
        assert "an upgrade is going on" in (await gateway.event("upgrade_refused"))["detail"]

        async def killed() -> bool:
            new = [each["pid"] for each in await workers(observed) if each["pid"] not in before]
            for each in new:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            return bool(new)

        await eventually(killed)
        assert "SIGKILL" in (await gateway.event("upgrade_failed"))["detail"]
        assert [each["pid"] for each in await workers(observed)] == before


async def test_sigterm_in_an_upgrade_ends_both(tmp_path: Path, backend: OipServer) -> None:
    async with gateway_process(conf_of(tmp_path, backend)) as gateway:
        await gateway.address()
        gateway.signal(signal.SIGUSR2)
        await gateway.event("upgrade_begins")
        gateway.signal(signal.SIGTERM)
        assert (await gateway.event("drained"))["unfinished"] == 0
        assert await gateway.exit_code() == 0


async def test_the_command_waits_for_the_outcome_and_what_was_commanded_before_still_stands(
    tmp_path: Path, backend: OipServer
) -> None:
    conf = conf_of(tmp_path, backend)
    text = conf.read_text().replace("admin: {", f"admin: {{socket: {tmp_path}/admin.sock, ")
    server = f'{{oip: "http://127.0.0.1:{backend.port}", slots: 64}}'
    other = '{oip: "http://127.0.0.1:9", slots: 1}'
    conf.write_text(text.replace(server, f"{server}, {other}"))
    async with gateway_process(conf) as gateway:
        await gateway.address()
        assert (await command("drain", str(conf), "far", "oip:127.0.0.1:9"))[0] == 0
        code, said = await command("upgrade", str(conf))
        assert (code, said) == (0, "generation 1 serves, with 2 workers\n")
        await gateway.event("supervisor_upgraded")
        code, said = await command("endpoints", str(conf), "--json")
        assert code == 0 and '"draining"' in said
        conf.write_text(conf.read_text().replace("tls: development", "tls: {cert: no.pem, key: no.key}"))
        code, said = await command("upgrade", str(conf))
        assert code == 1 and "the gateway goes on as it was" in said


async def command(*arguments: str) -> tuple[int | None, str]:
    """`inferlane`: its exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode, said.decode()
