# SPDX-License-Identifier: Apache-2.0
"""Backends that lie, fail all at once or hang: others answer for them, and nobody makes it worse by asking again.

Endpoints that die and come back under probes, names and files are test_endpoints.py's; each kind of broken reply is
test_bad_backends.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.fakes.crowd import crowd
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import CLASSES, LiveGateway, eventually, live_gateway, oip_pool, write_config
from tests.fakes.oip_server import OipServer
from tests.fakes.openai_server import OpenAiServer
from tests.fakes.raw_quic import RawClient, http3, section
from tests.fakes.scripted_oip import GOOD, Asked, ScriptedOip, after, never, saying

PATH = "/v2/models/m/infer"
# Ten times what a request of the warm-up took on the busiest machine seen: too_late must have nothing to refuse.
BRIEF = CLASSES + "  - {name: brief, dscp: CS1, deadline: 3s}\n"
HEDGED = CLASSES.replace("EF, deadline: 60s", "EF, deadline: 60s, hedge: 10%")
RESERVE = 10  # retries that may be made at once (qos/budget.py)
HEDGE_RESERVE = 30
QUICK = "health: {eject: 100ms}"


@pytest.fixture
async def three() -> AsyncIterator[list[ScriptedOip]]:
    """They answer 1, 2 and 3 in a millisecond or so."""
    async with AsyncExitStack() as until_the_end:
        servers = [ScriptedOip(after(0.001, number)) for number in (1, 2, 3)]
        for each in servers:
            await each.start()
            until_the_end.push_async_callback(each.close)
        yield servers


def pool_of(servers: list[ScriptedOip], more: str = QUICK, *, slots: int = 4, pick: str = "least_latency") -> str:
    endpoints = ", ".join(f"{{{each.endpoint}, slots: {slots}}}" for each in servers)
    return f'[{{name: far, model: "*", pick: {pick}, endpoints: [{endpoints}], {more}}}]'


async def statuses(client: RawClient, count: int, *, at_once: int = 10, cls: str = "interactive") -> list[int]:
    """Of so many requests, a few in flight at a time."""
    found: list[int] = []
    left = iter(range(count))

    async def ask() -> None:
        for _ in left:
            answer = await client.ask(section(PATH.encode(), (b"inferlane-class", cls.encode())), b"{}")
            found.append(answer.status or 0)

    await asyncio.gather(*(ask() for _ in range(at_once)))
    return found


@pytest.mark.parametrize("garbage", [b"", b"<html>200</html>", b"null"], ids=["nothing", "HTML", "null"])
async def test_a_backend_that_answers_garbage_at_once_is_a_failure_and_not_the_fastest(tmp_path, three, garbage):
    liar = three[0]
    liar.answer = saying(200, garbage)
    async with live_gateway(write_config(tmp_path, pool_of(three))) as gateway, http3(gateway.address) as client:
        found = await statuses(client, 300)
        assert found.count(200) >= 0.99 * len(found)
        assert set(found) <= {200, 502}
        assert len(liar.asked) <= 0.1 * len(found)
        await gateway.nothing_in_flight()


async def test_an_openai_backend_that_answers_garbage_at_once(tmp_path):
    async with AsyncExitStack() as until_the_end:
        liar, honest = OpenAiServer(), OpenAiServer()
        for each in (liar, honest):
            await each.start()
            until_the_end.push_async_callback(each.close)
        liar.script.garbage = b"<html>"
        endpoints = ", ".join(f'{{openai: "{each.url}", slots: 4}}' for each in (liar, honest))
        pools = f'[{{name: llm, model: "*", endpoints: [{endpoints}], {QUICK}}}]'
        gateway = await until_the_end.enter_async_context(live_gateway(write_config(tmp_path, pools)))
        client = await until_the_end.enter_async_context(h1_client(gateway.address, tmp_path))
        for _ in range(60):
            body = b'{"model": "tiny", "messages": []}'
            answer = await client.ask("/v1/chat/completions", body)
            assert answer.document["choices"][0]["message"]["content"] == "Hello!"
        assert len(liar.requests) <= 12


@pytest.mark.parametrize("status", [503, 429, 500])
async def test_a_retry_storm_stays_within_its_budget(tmp_path, three, status):
    """All fail: what is asked again is a fifth of the requests, and the few that may be at once."""
    for each in three:
        each.answer = saying(status, b'{"error": "scripted"}')
    count = 300
    async with live_gateway(write_config(tmp_path, pool_of(three))) as gateway, http3(gateway.address) as client:
        found = await statuses(client, count)
        asked = sum(len(each.asked) for each in three)
        retries = await gateway.value("inferlane_retries_total")
        assert set(found) == {status}
        assert asked == count + retries
        assert RESERVE <= retries <= 0.2 * count + RESERVE
        assert await gateway.value("inferlane_retries_denied_total") > 0
        for each in three:
            each.answer = saying(200, GOOD % 1)

        async def well() -> bool:
            return set(await statuses(client, 20)) == {200}

        await eventually(well)
        await gateway.nothing_in_flight()


async def test_all_endpoints_down_then_back_by_requests_alone(tmp_path):
    servers = [OipServer(1), OipServer(2)]
    for each in servers:
        await each.start()
    endpoints = ", ".join(f"{{oip: 'http://127.0.0.1:{each.port}', slots: 4}}" for each in servers)
    pools = f'[{{name: far, model: "*", endpoints: [{endpoints}], {QUICK}}}]'
    async with live_gateway(write_config(tmp_path, pools)) as gateway, http3(gateway.address) as client:
        assert set(await statuses(client, 20)) == {200}
        for each in servers:
            await each.die()
        assert set(await statuses(client, 40)) == {503}
        for each in servers:
            await each.start()

        async def back() -> bool:
            return set(await statuses(client, 20)) == {200}

        await eventually(back)
        await gateway.nothing_in_flight()
    for each in servers:
        await each.die()


async def test_one_hung_backend_of_three_is_told_of_by_the_gateway_within_the_deadline(tmp_path, three):
    """Clients without a timer of their own: it is the gateway that ends what hangs."""
    hung = three[0]
    loop = asyncio.get_running_loop()
    conf = write_config(tmp_path, pool_of(three, pick="round_robin"), classes=BRIEF)
    async with live_gateway(conf) as gateway, crowd(gateway.address, 90) as members:
        await asyncio.gather(*(each.ask() for each in members))
        hung.answer = never
        began = loop.time()
        found = await asyncio.gather(*(each.ask(cls="brief") for each in members))
        assert loop.time() - began < 20
        late = [each for each in found if each.header.status != 200]
        assert {each.header.status for each in late} <= {504}
        assert len(late) <= 8  # what the hung one had places for, and one that tried it again
        await gateway.nothing_in_flight()
        assert all(each.gone.is_set() or each.answered for each in hung.asked)


async def learnt(gateway: LiveGateway, client: RawClient) -> None:
    """Requests of class realtime until it is known what they take."""
    assert set(await statuses(client, 60, cls="realtime")) == {200}
    await gateway.nothing_in_flight()


async def test_a_hedge_answers_for_an_endpoint_that_hangs_and_the_loser_is_cancelled(tmp_path, three):
    two = three[:2]
    conf = write_config(tmp_path, pool_of(two, slots=32, pick="round_robin"), classes=HEDGED)
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        await learnt(gateway, client)
        hung = two[0]
        hung.answer = never
        before, hedges = len(hung.asked), await gateway.value("inferlane_hedges_total")
        assert set(await statuses(client, 12, at_once=1, cls="realtime")) == {200}
        losers = hung.asked[before:]
        assert losers
        assert await gateway.value("inferlane_hedges_total") >= hedges + len(losers)
        assert await gateway.value("inferlane_hedges_won_total") >= len(losers)

        async def cancelled() -> bool:
            return all(each.gone.is_set() for each in losers)

        await eventually(cancelled)
        await gateway.nothing_in_flight()
        # A class without hedges waits for the one that it asked.
        waiting = [client.send(section(PATH.encode()), b"{}") for _ in range(2)]
        await client.until(lambda: any(each.ended for each in waiting))
        assert await gateway.value("inferlane_in_flight") == 1


async def test_hedges_are_no_more_than_their_part_of_the_requests_when_all_are_slow(tmp_path, three):
    """Everything takes longer than it ever took: that is load, and copies would make it worse."""
    conf = write_config(tmp_path, pool_of(three, slots=32), classes=HEDGED)
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        await learnt(gateway, client)
        before = sum(len(each.asked) for each in three)
        for each in three:
            each.answer = after(0.03)
        count = 400
        assert set(await statuses(client, count, at_once=20, cls="realtime")) == {200}
        copies = sum(len(each.asked) for each in three) - before - count
        assert 0 < copies <= 0.1 * count + HEDGE_RESERVE
        assert copies <= await gateway.value("inferlane_hedges_total")
        await gateway.nothing_in_flight()


async def test_an_endpoint_that_fails_only_the_hedge_fails_nobody(tmp_path, three):
    two = three[:2]
    conf = write_config(tmp_path, pool_of(two, slots=32, pick="round_robin"), classes=HEDGED)
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        await learnt(gateway, client)
        hedges = await gateway.value("inferlane_hedges_total")
        asked: list[Asked] = []

        async def first_slow_second_broken(each: Asked) -> tuple[int, bytes]:
            asked.append(each)
            if len(asked) % 2 == 0:
                return 503, b"{}"
            await asyncio.sleep(0.2)
            return 200, GOOD % 1

        for each in two:
            each.answer = first_slow_second_broken
        assert await statuses(client, 1, at_once=1, cls="realtime") == [200]
        assert len(asked) == 2
        assert await gateway.value("inferlane_hedges_total") == hedges + 1
        await gateway.nothing_in_flight()


async def test_a_backend_that_is_down_costs_clients_nothing_but_their_answer(tmp_path):
    """One endpoint, and nobody else to ask: each is told at once, and none is asked twice."""
    server = ScriptedOip(saying(503, b"{}"))
    await server.start()
    async with live_gateway(write_config(tmp_path, oip_pool(server.port))) as gateway, http3(gateway.address) as client:
        assert set(await statuses(client, 100)) == {503}
        assert len(server.asked) == 100
        assert await gateway.value("inferlane_retries_total") == 0
        server.answer = saying(200, GOOD % 1)
        assert set(await statuses(client, 20)) == {200}
        await gateway.nothing_in_flight()
    await server.close()
