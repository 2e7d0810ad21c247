# SPDX-License-Identifier: Apache-2.0
"""A reload while requests wait: they have their turns by the new shares and ranks, and none of them is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.reload import reload
from tests.fakes.crowd import Answered, Member, crowd
from tests.fakes.live_gateway import CLASSES, Observed, gateway_process, live_gateway, oip_pool, write_config
from tests.fakes.scripted_oip import GOOD, Asked, ScriptedOip

TakeUp = Callable[[], Awaitable[None]]
MANY = 20
BATCH = "{name: batch, dscp: AF11, deadline: 60s}"
REALTIME = "{name: realtime, dscp: EF, deadline: 60s}"


class Site:
    """A gateway before a server with one place, which lets requests go one by one. take_up: have it read its file."""

    def __init__(self, conf: Path, take_up: TakeUp, observed: Observed, members: list[Member]) -> None:
        self.conf = conf
        self._take_up = take_up
        self.observed = observed
        self.members = members
        self.going_on = asyncio.Semaphore(0)
        self.classes: list[str] = []
        """As they came to the server, each named by the class that it was asked for."""

    async def answer(self, asked: Asked) -> tuple[int, bytes]:
        self.classes.append(asked.body.decode())
        await self.going_on.acquire()
        return 200, GOOD % 1

    async def fill(self, **counts: int) -> list[asyncio.Task[Answered]]:
        """One is served, and so many of each class wait."""
        asked = [self.members[0].ask(cls="background", body=b"first")]
        await self.observed.reaches("inferlane_in_flight", 1)
        members = iter(self.members[1:])
        for cls, count in counts.items():
            asked += [next(members).ask(cls=cls, body=cls.encode()) for _ in range(count)]
        await self.observed.reaches("inferlane_gate_waiting", sum(counts.values()))
        return asked

    async def reload(self, old: str, new: str) -> None:
        text = self.conf.read_text()
        assert old in text
        self.conf.write_text(text.replace(old, new))
        await self._take_up()

    async def go_on(self, asked: list[asyncio.Task[Answered]]) -> list[int]:
        """Serve all; their statuses."""
        for _ in asked:
            self.going_on.release()
        return [each.header.status for each in await asyncio.gather(*asked)]


@asynccontextmanager
async def serving(folder: Path, classes: str) -> AsyncIterator[tuple[Path, list[Site]]]:
    """A config with such a server, which asks the site that is put on the list."""
    sites: list[Site] = []
    server = ScriptedOip(lambda asked: sites[0].answer(asked))
    await server.start()
    yield write_config(folder, oip_pool(server.port, slots=1), classes=classes), sites
    await server.close()


@asynccontextmanager
async def site(folder: Path, classes: str = CLASSES) -> AsyncIterator[Site]:
    async with (
        serving(folder, classes) as (conf, sites),
        live_gateway(conf) as live,
        crowd(live.address, 2 * MANY + 1) as members,
    ):

        async def take_up() -> None:
            assert await reload(conf, live.gateway)

        sites.append(Site(conf, take_up, live, members))
        yield sites[0]
        await live.nothing_in_flight()


async def test_a_signal_gives_those_who_wait_already_their_new_share(tmp_path):
    async with (
        serving(tmp_path, CLASSES) as (conf, sites),
        gateway_process(conf) as process,
        crowd(await process.address(), 2 * MANY + 1) as members,
    ):

        async def take_up() -> None:
            process.signal(signal.SIGHUP)
            assert (await process.event("reloaded"))["changed"] == ["classes"]

        observed = await process.observed()
        sites.append(live := Site(conf, take_up, observed, members))
        asked = await live.fill(batch=MANY, realtime=MANY)
        await live.reload("AF11, deadline: 60s", "AF11, deadline: 60s, gate: {share: 50%}")
        assert set(await live.go_on(asked)) == {200}
        await observed.nothing_in_flight()
        assert not any('"level":"error"' in line for line in process.lines)
    assert 9 <= live.classes[1:21].count("batch") <= 11


async def test_a_share_that_is_gone_is_gone_for_them_too(tmp_path):
    shared = "AF11, deadline: 60s, gate: {share: 50%}"
    async with site(tmp_path, CLASSES.replace("AF11, deadline: 60s", shared)) as live:
        asked = await live.fill(batch=MANY, realtime=MANY)
        await live.reload(shared, "AF11, deadline: 60s")
        assert set(await live.go_on(asked)) == {200}
    assert live.classes[1 : MANY + 1].count("batch") <= 1


async def test_classes_that_change_places_do_so_in_the_queue(tmp_path):
    async with site(tmp_path) as live:
        asked = await live.fill(realtime=MANY, batch=MANY)
        text = live.conf.read_text().replace(BATCH, "WAS BATCH").replace(REALTIME, BATCH)
        swapped = text.replace("WAS BATCH", REALTIME).replace("max_class: realtime", "max_class: batch")
        await live.reload(live.conf.read_text(), swapped)
        assert set(await live.go_on(asked)) == {200}
    assert live.classes[1 : MANY + 1].count("realtime") <= 1


async def test_requests_of_a_class_that_is_no_more_are_served_all_the_same(tmp_path):
    async with site(tmp_path) as live:
        asked = await live.fill(batch=MANY, realtime=MANY)
        await live.reload(f"  - {BATCH}\n", "")
        assert set(await live.go_on(asked)) == {200}
        late = await live_default(live)
    assert sorted(live.classes[1:-1]) == ["batch"] * MANY + ["realtime"] * MANY
    assert late.header.class_name == "interactive"  # who asks for it now gets the default


async def live_default(live: Site) -> Answered:
    live.going_on.release()
    return await live.members[0].ask(cls="batch", body=b"late")


@pytest.mark.parametrize("bound", ["requests: 5", "bytes: 10B"])
async def test_a_narrower_bound_is_for_those_to_come(tmp_path, bound):
    async with site(tmp_path) as live:
        asked = await live.fill(batch=MANY)
        await live.reload("AF11, deadline: 60s", f"AF11, deadline: 60s, gate: {{{bound}}}")
        refused = await live.members[0].ask(cls="batch")
        assert refused.header.status == 429
        assert set(await live.go_on(asked)) == {200}
        live.going_on.release()
        assert (await live.members[0].ask(cls="batch", body=b"later")).header.status == 200


async def test_a_shorter_deadline_is_not_held_against_those_who_were_promised_more(tmp_path):
    async with site(tmp_path) as live:
        asked = await live.fill(batch=MANY)
        await live.reload("AF11, deadline: 60s", "AF11, deadline: 300ms")
        late = await live.members[0].ask(cls="batch")
        assert late.header.status == 504
        assert set(await live.go_on(asked)) == {200}
