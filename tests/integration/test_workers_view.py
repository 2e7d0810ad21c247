# SPDX-License-Identifier: Apache-2.0
"""Several workers are seen as one gateway: its metrics, pages and commands, and the process that has their models."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from inferlane import Client
from tests.fakes import models
from tests.fakes.live_gateway import GatewayProcess, Observed, eventually, gateway_process, oip_pool, write_config
from tests.fakes.oip_server import OipServer
from tests.fakes.raw_quic import http3, section

INFER = section(b"/v2/models/m/infer")
X = {"x": np.ones((2, 8), np.float32)}


@pytest.fixture
async def backend() -> AsyncIterator[OipServer]:
    server = OipServer(7)
    await server.start()
    yield server
    await server.die()


class Site:
    """A gateway of several workers, and what it tells."""

    def __init__(self, conf: Path, gateway: GatewayProcess, observed: Observed) -> None:
        self.conf, self.gateway, self.observed = conf, gateway, observed

    async def document(self, path: str) -> Any:
        status, page = await self.observed.get(path)
        assert status == 200, page
        return msgspec.json.decode(page)

    async def workers(self) -> list[dict[str, Any]]:
        return list((await self.document("/v1/workers"))["workers"])

    async def is_ready(self, *, is_ready: bool = True) -> None:
        async def told() -> bool:
            return ((await self.observed.get("/readyz"))[0] == 200) is is_ready

        await eventually(told)

    async def ask(self, times: int) -> None:
        """On a connection each: they come to any of the workers."""
        for _ in range(times):
            async with http3(await self.gateway.address()) as client:
                assert (await client.ask(INFER, b"{}")).status == 200

    async def command(self, *words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        told, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, told.decode()

    async def replaced(self, pid: int) -> None:
        async def there() -> bool:
            ready = [each["pid"] for each in await self.workers() if each["state"] == "ready"]
            return len(ready) == 2 and pid not in ready

        await eventually(there)


@asynccontextmanager
async def site_of(folder: Path, pools: str) -> AsyncIterator[Site]:
    conf = write_config(folder, pools)
    text = conf.read_text().replace("admin: {", f"admin: {{socket: {folder}/admin.sock, ")
    conf.write_text(f"{text}workers: 2\n")
    async with gateway_process(conf) as gateway:
        await gateway.address()
        yield Site(conf, gateway, await gateway.observed())
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0


async def test_counts_are_of_all_workers_and_outlive_each_of_them(tmp_path, backend):
    async with site_of(tmp_path, oip_pool(backend.port)) as site:
        await site.is_ready()
        await site.ask(8)
        await site.observed.reaches("inferlane_requests_total", 8)
        assert await site.observed.value("inferlane_request_seconds_count") == 8
        assert await site.observed.value("inferlane_build_info") == 1
        assert await site.observed.value("inferlane_workers", state="ready") == 2
        (promise,) = (await site.document("/v1/diagnose"))["promises"]
        assert promise["kept"] == 8
        for each in await site.workers():
            os.kill(each["pid"], signal.SIGKILL)
            await site.replaced(each["pid"])
            assert await site.observed.value("inferlane_requests_total") == 8
        await site.ask(2)
        await site.observed.reaches("inferlane_requests_total", 10)
        assert await site.observed.value("inferlane_worker_restarts_total") == 2
        restarts = [each["restarts"] for each in await site.workers()]
        assert restarts == [1, 1]
        await site.is_ready()


async def test_a_worker_that_hangs_holds_up_no_page_and_is_named(tmp_path, backend):
    async with site_of(tmp_path, oip_pool(backend.port)) as site:
        first, second = await site.workers()
        os.kill(first["pid"], signal.SIGSTOP)
        try:
            document = await site.document("/v1/pools")
            assert [each["name"] for each in document["pools"]] == ["far"]
            assert [each.partition(":")[0] for each in document["silent"]] == [first["name"]]
            assert await site.observed.value("inferlane_workers_silent") == 1
            assert (await site.observed.get("/readyz"))[0] == 503
            code, told = await site.command("drain", str(site.conf), "far", f"oip:127.0.0.1:{backend.port}")
            assert code == 1 and f"drained in {second['name']} but not in {first['name']}" in " ".join(told.split())
        finally:
            os.kill(first["pid"], signal.SIGCONT)


async def test_a_command_is_for_all_workers_and_for_those_that_come(tmp_path, backend):
    async with site_of(tmp_path, oip_pool(backend.port)) as site:
        endpoint = f"oip:127.0.0.1:{backend.port}"
        code, told = await site.command("drain", str(site.conf), "far", endpoint)
        assert (code, told.strip()) == (0, f"{endpoint} of pool far: draining, 0 in flight")
        for each in await site.workers():
            os.kill(each["pid"], signal.SIGKILL)
            await site.replaced(each["pid"])
        document = await site.document("/v1/pools")
        assert "silent" not in document
        (pool,) = document["pools"]
        assert [(each["state"], "states" in each) for each in pool["endpoints"]] == [("draining", False)]
        code, told = await site.command("undrain", str(site.conf), "far", endpoint)
        assert code == 0 and "healthy" in told
        await site.ask(4)
        code, told = await site.command("drain", str(site.conf), "far", "nobody")
        assert code == 1 and f"no endpoint of pool far is named nobody; there are: {endpoint}" in " ".join(told.split())


async def test_models_run_once_for_all_workers_and_come_back(tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.linear())
    pools = f'[{{name: here, model: "*", endpoints: [{{onnx: {tmp_path}/m.onnx}}]}}]'
    async with site_of(tmp_path, pools) as site:
        host, port = await site.gateway.address()
        (folder,) = tmp_path.glob("models-*")
        (pid,) = await asyncio.to_thread(_having, "proxy.supervise.models_child", (await site.workers())[0]["pid"])
        async with Client(f"udp://{host}:{port}") as client:
            before = await client.infer("any name/1", X)
            assert before.model == "any name/1"
            os.kill(pid, signal.SIGKILL)
            await site.is_ready(is_ready=False)
            await site.is_ready()
            after = await client.infer("any name/1", X)
            assert all((after.outputs[name] == before.outputs[name]).all() for name in ("y", "z"))
        told = await site.gateway.event("models_died")
        assert (told["exit_code"], told["level"]) == (-signal.SIGKILL, "error")
        assert folder.is_dir()
    assert not list(tmp_path.glob("models-*"))


def _having(module: str, sibling: int) -> list[int]:
    """Processes of this module that the same parent has as `sibling`."""
    parent = _parent(sibling)
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if module in (each / "cmdline").read_text() and _parent(int(each.name)) == parent:
                found.append(int(each.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
