# SPDX-License-Identifier: Apache-2.0
"""Endpoints that die, hang, come back, are drained or move to other addresses, as a client of the gateway sees it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from backends.lookout import discovery
from inferlane import Client
from inferlane.errors import Reason, Refused
from proxy.commands.control_client import ask_pools, set_draining
from proxy.config.settings import AdminSettings
from tests.fakes.live_gateway import PATIENCE_S, LiveGateway, eventually, live_gateway, write_config
from tests.fakes.oip_server import OipServer
from tests.fakes.raw_udp import RawUdpServer

X = {"x": np.zeros(1, np.int32)}
PROBED = "health: {probe: {every: 100ms, timeout: 200ms}, eject: 100ms}"


@pytest.fixture
async def servers() -> AsyncIterator[list[OipServer]]:
    """Three of them, which answer 1, 2 and 3."""
    found = [OipServer(number) for number in (1, 2, 3)]
    for each in found:
        await each.start()
    yield found
    for each in found:
        await each.die()


def pool(*endpoints: str, more: str = "") -> str:
    """`far`, for every model."""
    return f'[{{name: far, model: "*", pick: round_robin, endpoints: [{", ".join(endpoints)}], {more or PROBED}}}]'


def at(*servers: OipServer) -> list[str]:
    return [f"{{oip: 'http://{each.host}:{each.port}', slots: 4}}" for each in servers]


@asynccontextmanager
async def running(folder: Path, pools: str) -> AsyncIterator[tuple[LiveGateway, Client]]:
    """A gateway with an admin socket, and a client of it."""
    conf = write_config(folder, pools)
    conf.write_text(conf.read_text().replace('admin: {bind: "127.0.0.1:0"}', _ADMIN))
    async with live_gateway(conf) as live, Client(live.url("udp")) as client:
        yield live, client


_ADMIN = 'admin: {bind: "127.0.0.1:0", socket: admin.sock}'


async def answer(client: Client, timeout: float = PATIENCE_S) -> int:
    """Which server answered."""
    async with asyncio.timeout(PATIENCE_S):
        reply = await client.infer("m", X, timeout=timeout)
    return int(reply.outputs["y"][0])


async def answers(client: Client, count: int) -> set[int]:
    return {await answer(client) for _ in range(count)}


async def states(folder: Path) -> dict[str, str]:
    """Each endpoint's, by its name, as the admin socket tells."""
    told = await asyncio.to_thread(ask_pools, admin(folder))
    return {each["name"]: each["state"] for each in told["pools"][0]["endpoints"]}


async def drain(folder: Path, name: str, *, draining: bool = True) -> None:
    await asyncio.to_thread(set_draining, admin(folder), "far", name, draining=draining)


def admin(folder: Path) -> AdminSettings:
    return AdminSettings(socket=folder / "admin.sock")


async def reach(folder: Path, wanted: Sequence[str]) -> None:
    """Wait until the endpoints are in these states."""

    async def there() -> bool:
        return list((await states(folder)).values()) == list(wanted)

    await eventually(there)


async def test_all_endpoints_down_then_back(tmp_path, servers):
    one, two, _ = servers
    async with running(tmp_path, pool(*at(one, two))) as (live, client):
        assert await answers(client, 4) == {1, 2}
        await one.die()
        await two.die()
        await reach(tmp_path, ["ejected", "ejected"])
        assert (await live.get("/readyz"))[0] == 503
        with pytest.raises(Refused) as refused:
            await answer(client, timeout=1.0)
        assert refused.value.reason in (
            Reason.NO_ENDPOINT,
            Reason.BACKEND_FAILED,
            Reason.QUEUE_TIMEOUT,
            Reason.DEADLINE,
        )
        await one.start()
        await two.start()
        await reach(tmp_path, ["healthy", "healthy"])
        assert (await live.get("/readyz"))[0] == 200
        assert await answers(client, 8) == {1, 2}
        await live.nothing_in_flight()


async def test_a_drained_endpoint_finishes_what_it_has_and_gets_nothing_new(tmp_path, servers):
    one, two, _ = servers
    first, second = (f"oip:127.0.0.1:{each.port}" for each in (one, two))
    async with running(tmp_path, pool(*at(one, two), more="retry: {most: 0}")) as (live, client):
        one.let_go.clear()
        held = [asyncio.ensure_future(answer(client)) for _ in range(4)]

        async def both_asked() -> bool:
            return one.asked == 2 and two.asked == 2

        await eventually(both_asked)
        await drain(tmp_path, first)
        assert await states(tmp_path) == {first: "draining", second: "healthy"}
        assert await answers(client, 6) == {2}
        one.let_go.set()
        assert sorted(await asyncio.gather(*held)) == [1, 1, 2, 2]
        assert one.asked == 2
        await drain(tmp_path, first, draining=False)
        assert await answers(client, 4) == {1, 2}
        await live.nothing_in_flight()


async def test_who_waits_while_all_is_drained_is_served_when_one_is_put_back(tmp_path, servers):
    one, *_ = servers
    name = f"oip:127.0.0.1:{one.port}"
    async with running(tmp_path, pool(*at(one))) as (live, client):
        one.let_go.clear()
        held = [asyncio.ensure_future(answer(client)) for _ in range(5)]
        await live.reaches("inferlane_gate_waiting", 1)
        await drain(tmp_path, name)
        one.let_go.set()

        async def four_done() -> bool:
            return sum(each.done() for each in held) == 4

        await eventually(four_done)
        assert one.asked == 4
        await drain(tmp_path, name, draining=False)
        assert await asyncio.gather(*held) == [1] * 5
        await live.nothing_in_flight()


async def test_one_hung_backend_of_three_costs_no_client_more_than_its_deadline(tmp_path, servers):
    hung = servers[2]
    async with running(tmp_path, pool(*at(*servers))) as (live, client):
        assert await answers(client, 6) == {1, 2, 3}
        hung.let_go.clear()
        outcomes = await asyncio.gather(*(answer(client, timeout=2.0) for _ in range(60)), return_exceptions=True)
        late = [each for each in outcomes if isinstance(each, BaseException)]
        assert all(isinstance(each, Refused) for each in late)
        assert len(late) <= 4  # no more than the hung one had places for
        await reach(tmp_path, ["healthy", "healthy", "ejected"])
        asked = hung.asked
        assert await answers(client, 10) == {1, 2}
        assert hung.asked == asked
        hung.let_go.set()
        await reach(tmp_path, ["healthy"] * 3)

        async def back() -> bool:
            return await answer(client) == 3

        await eventually(back)
        await live.nothing_in_flight()


async def test_a_hung_backend_is_found_out_by_its_requests_alone(tmp_path, servers):
    hung = servers[2]
    pools = pool(*at(*servers), more="health: {eject: 100ms}")
    async with running(tmp_path, pools.replace("round_robin", "least_latency")) as (live, client):
        assert await answers(client, 30) == {1, 2, 3}
        hung.let_go.clear()
        outcomes = await asyncio.gather(*(answer(client, timeout=2.0) for _ in range(60)), return_exceptions=True)
        late = [each for each in outcomes if isinstance(each, BaseException)]
        assert all(isinstance(each, Refused) for each in late)
        assert len(late) <= 4
        asked = hung.asked
        assert await answers(client, 50) <= {1, 2}
        assert hung.asked <= asked + 1
        hung.let_go.set()

        async def back() -> bool:
            return 3 in await asyncio.gather(*(answer(client) for _ in range(12)))  # more than two have places for

        await eventually(back)
        await live.nothing_in_flight()


async def test_datagram_endpoints_are_asked_by_ping(tmp_path, servers):
    (tmp_path / "behind").mkdir()
    (tmp_path / "front").mkdir()
    async with running(tmp_path / "behind", pool(*at(servers[0]))) as (behind, _):
        address = "{}:{}".format(*behind.address)
        async with running(tmp_path / "front", pool(f"{{datagram: '{address}'}}")) as (front, client):
            assert await answer(client) == 1
            await behind.gateway.close()
            await reach(tmp_path / "front", ["ejected"])
            assert (await front.get("/readyz"))[0] == 503
            somebody = RawUdpServer()
            await somebody.start(behind.address[1])
            try:
                for _ in range(5):
                    await somebody.receive()  # and no answer
                assert await states(tmp_path / "front") == {f"datagram:{address}": "ejected"}
                answering = asyncio.create_task(answer_pings(somebody))
                await reach(tmp_path / "front", ["healthy"])
                answering.cancel()
            finally:
                somebody.close()


async def answer_pings(server: RawUdpServer) -> None:
    while True:
        ping, _ = await server.receive()
        server.challenge(ping)


class NameServer:
    """Tells a name's addresses as the test wants; None: it does not answer."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] | OSError | None = addresses
        self.asked = 0

    async def __call__(self, host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, tuple[str, int]]]:
        self.asked += 1
        assert host == "far.example"
        if self.addresses is None:
            await asyncio.Event().wait()
        if isinstance(self.addresses, OSError):
            raise self.addresses
        assert self.addresses is not None
        return [(socket.AF_INET, (each, port)) for each in self.addresses]


@pytest.fixture
async def moving() -> AsyncIterator[list[OipServer]]:
    """Two servers at one port of two addresses."""
    async with AsyncExitStack() as until_the_end:
        found = [OipServer(1, "127.0.0.2"), OipServer(2, "127.0.0.3")]
        port = 0
        for each in found:
            await each.start(port)
            until_the_end.push_async_callback(each.die)
            port = each.port
        yield found


def named(servers: list[OipServer]) -> str:
    return pool(f"{{oip: 'http://far.example:{servers[0].port}', resolve: 100ms, slots: 4}}", more="retry: {most: 0}")


async def test_a_name_that_moves_is_followed_and_what_is_in_flight_is_finished(tmp_path, moving, monkeypatch):
    names = NameServer("127.0.0.2")
    monkeypatch.setattr(discovery, "resolve", names)
    one, _ = moving
    async with running(tmp_path, named(moving)) as (live, client):
        assert await answers(client, 2) == {1}
        names.addresses = ("127.0.0.2", "127.0.0.3")
        await reach(tmp_path, ["healthy", "healthy"])
        assert await answers(client, 4) == {1, 2}
        one.let_go.clear()
        held = [asyncio.ensure_future(answer(client)) for _ in range(2)]

        async def asked() -> bool:
            return sum(each.done() for each in held) == 1

        await eventually(asked)
        names.addresses = ("127.0.0.3",)
        await reach(tmp_path, ["healthy"])
        assert await answers(client, 4) == {2}
        one.let_go.set()
        assert sorted(await asyncio.gather(*held)) == [1, 2]
        await live.nothing_in_flight()


@pytest.mark.parametrize("answer_now", [(), None, socket.gaierror(-3, "Temporary failure in name resolution")])
async def test_a_name_server_that_fails_is_not_noticed_by_clients(tmp_path, moving, monkeypatch, answer_now):
    monkeypatch.setattr(discovery, "ANSWER_S", 0.05)
    names = NameServer("127.0.0.2")
    monkeypatch.setattr(discovery, "resolve", names)
    async with running(tmp_path, named(moving)) as (_, client):
        assert await answers(client, 1) == {1}
        names.addresses = answer_now
        before = names.asked

        async def asked_again() -> bool:
            return names.asked >= before + 3

        await eventually(asked_again)
        assert await answers(client, 3) == {1}


async def test_a_name_that_resolves_to_nothing_at_the_start_makes_a_pool_that_is_not_ready(
    tmp_path, moving, monkeypatch
):
    names = NameServer()
    monkeypatch.setattr(discovery, "resolve", names)
    async with running(tmp_path, named(moving)) as (live, client):
        assert (await live.get("/readyz"))[0] == 503
        with pytest.raises(Refused):
            await answer(client, timeout=0.5)
        names.addresses = ("127.0.0.3",)
        await reach(tmp_path, ["healthy"])
        assert (await live.get("/readyz"))[0] == 200
        assert await answers(client, 2) == {2}


async def test_a_watched_file_adds_and_removes_endpoints(tmp_path, servers):
    one, two, three = servers
    listed = tmp_path / "endpoints.yaml"
    listed.write_text(f"- {at(two)[0]}\n")
    more = "endpoints_from: {file: endpoints.yaml, every: 100ms}"
    async with running(tmp_path, pool(*at(one), more=more)) as (_, client):
        assert await answers(client, 4) == {1, 2}
        listed.write_text(f"- {at(three)[0]}\n- oip: nonsense\n")
        await asyncio.sleep(0.3)
        assert await answers(client, 4) == {1, 2}
        listed.write_text(f"- {at(three)[0]}\n")

        async def changed() -> bool:
            return f"oip:127.0.0.1:{three.port}" in await states(tmp_path)

        await eventually(changed)
        assert await answers(client, 4) == {1, 3}


async def test_what_a_program_reads_of_the_endpoints_is_the_same_at_the_admin_port(tmp_path, servers):
    async with running(tmp_path, pool(*at(servers[0]))) as (live, client):
        await answer(client)
        status, body = await live.get("/v1/pools")
        told = await asyncio.to_thread(ask_pools, admin(tmp_path))
        assert status == 200
        assert (
            [each["name"] for each in json.loads(body)["pools"]] == [each["name"] for each in told["pools"]] == ["far"]
        )
