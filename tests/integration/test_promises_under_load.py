# SPDX-License-Identifier: Apache-2.0
"""More work than places: who is served next across classes and clients, and that a thousand of them are all answered.

The order of a few, the queue's bounds and its deadlines are test_overload.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from inferlane.errors import Reason
from tests.fakes.crowd import Answered, Member, crowd
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import CLASSES, LiveGateway, eventually, live_gateway, write_config
from tests.fakes.raw_quic import http3, section
from tests.fakes.scripted_oip import GOOD, Asked, ScriptedOip, after

PATH = "/v2/models/m/infer"
THOUSAND = 1000


class Held:
    """Answers one request each time a test lets one go."""

    def __init__(self) -> None:
        self.going_on = asyncio.Semaphore(0)
        self.classes: list[str] = []
        """In the order in which they came."""
        self.names: list[str] = []

    async def __call__(self, asked: Asked) -> tuple[int, bytes]:
        self.classes.append(asked.fields["inferlane-class"])
        self.names.append(asked.body.decode())
        await self.going_on.acquire()
        return 200, GOOD % 1

    def lets_go(self, count: int) -> None:
        for _ in range(count):
            self.going_on.release()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
async def server(held: Held) -> AsyncIterator[ScriptedOip]:
    made = ScriptedOip(held)
    await made.start()
    yield made
    await made.close()


def one_place(server: ScriptedOip, slots: int = 1) -> str:
    return f'[{{name: far, model: "*", endpoints: [{{{server.endpoint}, slots: {slots}}}]}}]'


@asynccontextmanager
async def overloaded(
    folder: Path, server: ScriptedOip, count: int, *, classes: str = CLASSES
) -> AsyncIterator[tuple[LiveGateway, list[Member]]]:
    """A gateway with one place, which somebody has, and a crowd in front."""
    async with (
        live_gateway(write_config(folder, one_place(server), classes=classes)) as gateway,
        crowd(gateway.address, count + 1) as (occupant, *members),
    ):
        occupying = occupant.ask(cls="background", body=b"occupied")
        await gateway.reaches("inferlane_in_flight", 1)
        yield gateway, members
        assert (await occupying).header.status == 200


async def queued(gateway: LiveGateway, members: list[Member], cls: str) -> list[asyncio.Task[Answered]]:
    """Each asks once, and all wait."""
    before = await gateway.value("inferlane_gate_waiting")
    asked = []
    for count, member in enumerate(members, 1):
        asked.append(member.ask(cls=cls, body=member.address.encode()))
        if not count % 50:
            await asyncio.sleep(0.001)
    await gateway.reaches("inferlane_gate_waiting", before + len(members))
    return asked


async def test_a_thousand_clients_of_one_class_do_not_delay_one_of_a_higher(tmp_path, server, held):
    async with overloaded(tmp_path, server, THOUSAND + 1) as (gateway, (one, *many)):
        waiting = await queued(gateway, many, "batch")
        first = await queued(gateway, [one], "realtime")
        held.lets_go(2 + THOUSAND)
        answers = await asyncio.gather(*first, *waiting)
    assert [each.header.status for each in answers] == [200] * (THOUSAND + 1)
    assert held.classes[:2] == ["background", "realtime"]
    assert answers[0].place == 1  # behind who had the place already


async def test_a_thousand_clients_of_a_higher_class_cannot_keep_one_of_a_lower_from_moving(tmp_path, server, held):
    async with overloaded(tmp_path, server, THOUSAND + 1) as (gateway, (one, *many)):
        low = await queued(gateway, [one], "batch")
        high = await queued(gateway, many, "realtime")
        held.lets_go(2 + THOUSAND)
        answers = await asyncio.gather(*low, *high)
    assert {each.header.status for each in answers} == {200}
    assert held.classes.index("batch") <= 40  # every 33rd turn is promised to those passed over


async def test_a_share_of_the_places_is_kept_against_a_flood_of_a_higher_class(tmp_path, server, held):
    classes = CLASSES.replace("AF11, deadline: 60s", "AF11, deadline: 60s, gate: {share: 50%}")
    async with overloaded(tmp_path, server, 80, classes=classes) as (gateway, members):
        low = await queued(gateway, members[:20], "batch")
        high = await queued(gateway, members[20:], "realtime")
        held.lets_go(81)
        await asyncio.gather(*low, *high)
    turns = held.classes[1:41]
    assert 18 <= turns.count("batch") <= 20
    assert set(held.classes[41:]) == {"realtime"}


async def test_realtime_goes_before_all_batch_that_waits_again_and_again(tmp_path, server, held):
    """One request of it at a time, as an application sends them, against a queue that is never empty."""
    async with overloaded(tmp_path, server, 101) as (gateway, (one, *many)):
        waiting = await queued(gateway, many, "batch")
        for turn in range(10):
            (asking,) = await queued(gateway, [one], "realtime")
            held.lets_go(2)  # who has the place, and then realtime
            assert (await asking).header.status == 200
            await at_work(held, 2 * turn + 3)
        held.lets_go(THOUSAND)
        await asyncio.gather(*waiting)
    assert held.classes[1:21] == ["realtime", "batch"] * 10


async def at_work(held: Held, count: int) -> None:
    """Wait until so many have come to the backend."""

    async def there() -> bool:
        return len(held.classes) >= count

    await eventually(there)


async def test_many_clients_of_a_class_are_each_served_once_before_one_is_twice(tmp_path, server, held):
    """One asks 200 times, long before all others."""
    async with overloaded(tmp_path, server, 401) as (gateway, (greedy, *many)):
        burst = [greedy.ask(cls="batch", body=b"greedy") for _ in range(200)]
        await gateway.reaches("inferlane_gate_waiting", 200)
        waiting = await queued(gateway, many, "batch")
        held.lets_go(1 + 200 + len(many))
        answers = await asyncio.gather(*burst, *waiting)
    assert {each.header.status for each in answers} == {200}
    served = held.names[1:]
    # Its turns while the others wait are the first, and one where they come round.
    assert served[: len(many) + 2].count("greedy") <= 3
    assert sorted(served) == sorted([*["greedy"] * 200, *(each.address for each in many)])


async def test_who_asks_a_thousand_times_delays_another_client_by_one_turn(tmp_path, server, held):
    async with overloaded(tmp_path, server, 2) as (gateway, (greedy, modest)):
        burst = []
        for count in range(THOUSAND):
            burst.append(greedy.ask(cls="interactive", body=b"greedy"))
            if not count % 50:
                await asyncio.sleep(0.001)
        await gateway.reaches("inferlane_gate_waiting", THOUSAND)
        for turn in range(5):
            (asking,) = await queued(gateway, [modest], "interactive")
            held.lets_go(3)
            assert (await asking).header.status == 200
            await at_work(held, 3 * turn + 4)
        held.lets_go(THOUSAND)
        await asyncio.gather(*burst)
    mine = [place for place, name in enumerate(held.names) if name != "greedy" and name != "occupied"]
    assert len(mine) == 5
    assert all(place <= 3 * turn + 3 for turn, place in enumerate(mine))


async def test_a_full_gate_displaces_the_newest_of_the_lowest_class(tmp_path, server, held):
    """4,096 wait in all: a higher class finds room all the same, a lower one does not."""
    classes = CLASSES.replace("deadline: 60s", "deadline: 60s, gate: {requests: 4096}")
    async with overloaded(tmp_path, server, 5, classes=classes) as (gateway, members):
        low = []
        for member in members[:4]:
            for count in range(1, 1025):
                low.append(member.ask(cls="batch"))
                if not count % 50:
                    await asyncio.sleep(0.001)
        await gateway.reaches("inferlane_gate_waiting", 4096)
        refused = await members[4].ask(cls="background")
        assert (refused.header.status, Reason.from_code(refused.header.reason)) == (429, Reason.QUEUE_FULL)
        assert refused.header.retry_after_ms
        high = members[4].ask(cls="realtime")
        await gateway.reaches("inferlane_gate_waiting", 1, **{"class": "realtime"})
        await gateway.reaches("inferlane_evicted_total", 1, **{"class": "batch"})
        evicted = [each for each in low if each.done()]
        assert [Reason.from_code(each.result().header.reason) for each in evicted] == [Reason.EVICTED]
        held.lets_go(2)
        assert (await high).header.status == 200
        for each in low:  # the gateway is closed with all of them in its queue
            each.cancel()
        await asyncio.gather(*low, return_exceptions=True)


async def test_a_thousand_clients_at_once_are_all_answered(tmp_path, server):
    """Over UDP, HTTP/1.1 and HTTP/3, each with a connection or an address of its own, before 64 places."""
    server.answer = after(0.002)
    async with live_gateway(write_config(tmp_path, one_place(server, 64))) as gateway, AsyncExitStack() as stack:
        members = await stack.enter_async_context(crowd(gateway.address, 900))
        h1 = [await stack.enter_async_context(h1_client(gateway.address, tmp_path)) for _ in range(80)]
        h3 = [await stack.enter_async_context(http3(gateway.address)) for _ in range(20)]
        asked = [each.ask() for each in members]
        by_h1 = [asyncio.create_task(each.ask(PATH)) for each in h1]
        by_h3 = [asyncio.create_task(each.ask(section(PATH.encode()), b"{}")) for each in h3]
        statuses = [each.header.status for each in await asyncio.gather(*asked)]
        statuses += [each.status for each in await asyncio.gather(*by_h1)]
        statuses += [each.status or 0 for each in await asyncio.gather(*by_h3)]
        assert statuses == [200] * THOUSAND
        assert server.most_at_once <= 64
        await gateway.nothing_in_flight()
        assert await gateway.value("inferlane_requests_total", reason="ok") == THOUSAND
        # And the gateway is as good as new.
        assert (await h1[0].ask(PATH)).status == 200
