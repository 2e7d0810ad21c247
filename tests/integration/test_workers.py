# SPDX-License-Identifier: Apache-2.0
"""Several workers are one gateway: they share its doors, and one that dies takes nobody else's requests along."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import inferlane
from tests.fakes import models
from tests.fakes.live_gateway import GatewayProcess, eventually, gateway_process, oip_pool, write_config
from tests.fakes.oip_server import OipServer
from tests.fakes.raw_quic import RawClient, http3, section

INFER = section(b"/v2/models/m/infer")
OUTPUT = b'{"model_name":"m","outputs":[{"name":"y","datatype":"INT32","shape":[1],"data":[7]}]}'


@pytest.fixture
async def backend() -> AsyncIterator[OipServer]:
    server = OipServer(7)
    await server.start()
    yield server
    await server.die()


def conf_of(folder: Path, backend: OipServer, *, workers: int = 2) -> Path:
    conf = write_config(folder, oip_pool(backend.port, slots=64))
    conf.write_text(f"{conf.read_text()}workers: {workers}\n")
    return conf


class Workers:
    """A gateway and its workers."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway

    async def seen(self) -> list[dict[str, Any]]:
        """As /v1/workers tells them, in the order of their places."""
        _, page = await (await self.gateway.observed()).get("/v1/workers")
        return sorted(msgspec.json.decode(page)["workers"], key=lambda each: each["place"])

    async def pid(self, place: int) -> int:
        return int((await self.seen())[place]["pid"])

    async def replaced(self, place: int, pid: int) -> None:
        """Until another serves where this one did."""

        async def there() -> bool:
            found = [each for each in await self.seen() if each["place"] == place]
            return bool(found) and found[0]["state"] == "ready" and found[0]["pid"] != pid

        await eventually(there)


@asynccontextmanager
async def running(conf: Path) -> AsyncIterator[Workers]:
    async with gateway_process(conf) as gateway:
        await gateway.address()
        yield Workers(gateway)


def place_of(client: RawClient) -> int:
    """Which worker has its connection: the id that the gateway chose says so."""
    return client.quic._peer_cid.cid[1]


async def one_client_each(open_clients: AsyncExitStack, address: tuple[str, int], workers: int) -> list[RawClient]:
    """A connection to every worker; others are closed again."""
    found: dict[int, RawClient] = {}
    while len(found) < workers:
        async with AsyncExitStack() as trying:
            client = await trying.enter_async_context(http3(address))
            if place_of(client) not in found:
                found[place_of(client)] = client
                open_clients.push_async_exit(trying.pop_all())
    return [found[place] for place in sorted(found)]


async def reset(client: RawClient) -> None:
    """Ask until there is a stateless reset (RFC 9000 section 10.3), which aioquic's clients do not look for."""
    token = client.quic._peer_cid.stateless_reset_token
    came: list[bytes] = []
    client.datagram_received = lambda data, address: came.append(data)  # type: ignore[method-assign]
    client.send(INFER, b"{}")

    async def told() -> bool:
        return any(data.endswith(token) for data in came)

    await eventually(told)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def maps_of(pid: int) -> str:
    """What a process has loaded."""
    return Path(f"/proc/{pid}/maps").read_text()


async def ended(*pids: int) -> None:
    async def gone() -> bool:
        return not any(map(alive, pids))

    await eventually(gone)


async def test_one_that_is_killed_is_replaced_and_the_others_lose_nothing(tmp_path: Path, backend: OipServer) -> None:
    async with running(conf_of(tmp_path, backend, workers=3)) as workers, AsyncExitStack() as open_clients:
        gateway = workers.gateway
        address, observed = await gateway.address(), await gateway.observed()
        clients = await one_client_each(open_clients, address, 3)
        for each in clients:
            assert (await each.ask(INFER, b"{}")).status == 200

        ending = asyncio.Event()
        answers: list[int | None] = []

        async def go_on(client: RawClient) -> None:
            while not ending.is_set():
                answers.append((await client.ask(INFER, b"{}")).status)

        asking = [asyncio.create_task(go_on(each)) for each in clients[:2]]
        killed = await workers.pid(2)
        os.kill(killed, signal.SIGKILL)
        await workers.replaced(2, killed)
        ending.set()
        await asyncio.gather(*asking)
        assert answers and set(answers) == {200}

        # It was told nothing when its worker died; whatever it sends now is answered by a stateless reset.
        await reset(clients[2])
        assert [(await each.ask(INFER, b"{}")).status for each in clients[:2]] == [200, 200]
        await one_client_each(open_clients, address, 3)

        told = await gateway.event("worker_ended")
        assert (told["pid"], told["how"], told["level"]) == (killed, "was ended by SIGKILL", "error")
        await observed.reaches("inferlane_worker_restarts_total", 1)
        await observed.nothing_in_flight()
        assert [each["restarts"] for each in await workers.seen()] == [0, 0, 1]


async def test_places_that_a_dead_worker_had_are_free_again(tmp_path: Path, backend: OipServer) -> None:
    conf = write_config(tmp_path, oip_pool(backend.port, slots=1))
    conf.write_text(f"{conf.read_text()}workers: 2\n")
    async with running(conf) as workers, AsyncExitStack() as open_clients:
        address, observed = await workers.gateway.address(), await workers.gateway.observed()
        first, second = await one_client_each(open_clients, address, 2)
        backend.let_go.clear()
        first.send(INFER, b"{}")
        await observed.reaches("inferlane_in_flight", 1)
        waits = second.send(INFER, b"{}")
        await observed.reaches("inferlane_gate_waiting", 1)
        os.kill(await workers.pid(0), signal.SIGKILL)

        async def asked_twice() -> bool:
            return backend.asked == 2

        await eventually(asked_twice)
        backend.let_go.set()
        assert (await waits.over()).status == 200


async def test_models_run_in_one_process_for_all_of_them(tmp_path: Path) -> None:
    models.saved(models.identity(), tmp_path)
    conf = write_config(tmp_path, "[{name: m, model: m, endpoints: [{onnx: model.onnx}]}]")
    conf.write_text(f"{conf.read_text()}workers: 2\n")
    x = np.ones((1, 4), np.float32)
    async with running(conf) as workers, AsyncExitStack() as open_clients:
        host, port = await workers.gateway.address()
        for _ in range(6):
            url = f"https://{host}:{port}"
            client = await open_clients.enter_async_context(inferlane.Client(url, insecure=True))
            assert (await client.infer("m", {"x": x})).outputs["y"].tolist() == x.tolist()
        assert not any("onnxruntime" in maps_of(each["pid"]) for each in await workers.seen())


async def test_one_that_cannot_start_ends_the_start(tmp_path: Path, backend: OipServer) -> None:
    conf = conf_of(tmp_path, backend)
    conf.write_text(conf.read_text().replace("tls: development", "tls: {cert: no.pem, key: no.key}"))
    async with gateway_process(conf) as gateway:
        assert await gateway.exit_code() == 2
        (line,) = gateway.lines
        assert line.startswith(f"inferlane: {tmp_path}/no.pem: no such file")


async def test_without_their_supervisor_they_finish_and_end(tmp_path: Path, backend: OipServer) -> None:
    async with running(conf_of(tmp_path, backend)) as workers:
        pids = [each["pid"] for each in await workers.seen()]
        async with http3(await workers.gateway.address()) as client:
            backend.let_go.clear()
            asking = client.send(INFER, b"{}")

            async def asked() -> bool:
                return backend.asked == 1

            await eventually(asked)
            workers.gateway.signal(signal.SIGKILL)
            await client.until(lambda: client.goaway is not None)
            backend.let_go.set()
            assert (await asking.over()).status == 200
        await ended(*pids)


async def test_while_a_place_is_empty_the_gateway_is_not_ready(tmp_path: Path, backend: OipServer) -> None:
    """A part of the new clients would wait there for nobody."""
    async with running(conf_of(tmp_path, backend)) as workers:
        observed = await workers.gateway.observed()
        assert (await observed.get("/readyz"))[0] == 200
        os.kill(await workers.pid(1), signal.SIGKILL)
        await workers.gateway.event("worker_ended")
        seen = [await observed.get("/readyz")]
        while not any('"worker_replaced"' in line for line in workers.gateway.lines):
            seen.append(await observed.get("/readyz"))
        while seen[-1][0] != 503:
            seen.pop()  # it was ready before the line was read
        assert {status for status, _ in seen} == {503}
        assert "place 1 has no worker" in seen[0][1]
        await observed.nothing_in_flight()
        assert (await observed.get("/readyz"))[0] == 200


async def test_each_line_of_a_worker_says_which_wrote_it(tmp_path: Path, backend: OipServer) -> None:
    conf = conf_of(tmp_path, backend)

    async def writers(open_clients: AsyncExitStack, gateway: GatewayProcess) -> set[str | None]:
        before = len(gateway.lines)
        for each in await one_client_each(open_clients, await gateway.address(), 2):
            assert (await each.ask(INFER, b"{}")).status == 200

        def finished() -> list[dict[str, Any]]:
            lines = [msgspec.json.decode(line) for line in gateway.lines[before:]]
            return [line for line in lines if line["event"] == "request_finished"]

        async def told() -> bool:
            return len(finished()) == 2

        await eventually(told)
        return {line.get("worker") for line in finished()}

    async with running(conf) as workers, AsyncExitStack() as open_clients:
        assert await writers(open_clients, workers.gateway) == {"worker 0.0", "worker 0.1"}
        conf.write_text(conf.read_text() + "log: {level: debug}\n")  # logging is configured anew
        workers.gateway.signal(signal.SIGHUP)
        assert "worker" not in await workers.gateway.event("reloaded")
        assert await writers(open_clients, workers.gateway) == {"worker 0.0", "worker 0.1"}


async def test_what_others_blocked_or_ignored_is_none_of_its_business(tmp_path: Path, backend: OipServer) -> None:
    """Masks and ignored signals are inherited: from a shell's trap, or from a supervisor that gives way to another."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ignored = signal.getsignal(signal.SIGCHLD)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        started = gateway_process(conf_of(tmp_path, backend))
        gateway = await started.__aenter__()
    finally:
        signal.signal(signal.SIGCHLD, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        workers = Workers(gateway)
        await gateway.address()
        pid = await workers.pid(0)
        os.kill(pid, signal.SIGTERM)
        await workers.replaced(0, pid)
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    finally:
        await started.__aexit__(None, None, None)


async def test_a_signal_to_one_drains_it_and_another_takes_its_place(tmp_path: Path, backend: OipServer) -> None:
    async with running(conf_of(tmp_path, backend)) as workers:
        pid = await workers.pid(0)
        for harmless in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            os.kill(pid, harmless)
        assert await workers.pid(0) == pid
        os.kill(pid, signal.SIGTERM)
        await workers.replaced(0, pid)
        assert (await workers.gateway.event("worker_ended"))["how"] == "ended with exit code 0"


async def test_a_reload_reaches_all_of_them_or_none_and_those_that_come_later(
    tmp_path: Path, backend: OipServer
) -> None:
    conf = conf_of(tmp_path, backend)
    text = conf.read_text()
    ruled = text + "rules: [{when: {path: '*'}, class: batch}]\n"

    async def classes(open_clients: AsyncExitStack, address: tuple[str, int]) -> list[bytes]:
        clients = await one_client_each(open_clients, address, 2)
        return [(await each.ask(INFER, b"{}")).head[b"inferlane-class"] for each in clients]

    async with running(conf) as workers, AsyncExitStack() as open_clients:
        gateway = workers.gateway
        address = await gateway.address()
        conf.write_text(ruled.replace("class: batch", "class: no-such-class"))
        gateway.signal(signal.SIGHUP)
        await gateway.event("reload_failed")
        assert await classes(open_clients, address) == [b"interactive"] * 2
        conf.write_text(ruled.replace("workers: 2", "workers: 3"))
        gateway.signal(signal.SIGHUP)
        assert (await gateway.event("needs_restart"))["sections"] == ["workers"]
        assert (await gateway.event("reloaded"))["changed"] == ["rules"]
        assert sum('"event":"reloaded"' in line for line in gateway.lines) == 1
        assert await classes(open_clients, address) == [b"batch"] * 2
        conf.write_text("a file that is no config any more")
        pid = await workers.pid(1)
        os.kill(pid, signal.SIGKILL)
        await workers.replaced(1, pid)
        assert await classes(open_clients, address) == [b"batch"] * 2
