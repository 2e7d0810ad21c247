# SPDX-License-Identifier: Apache-2.0
"""Commands to all workers: done everywhere, or said where not; and they stand for those that come."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from backends.pool import Pool
from proxy.endpoints import Endpoints, NotDone
from proxy.supervise import standing
from proxy.supervise.documents import worker_answers
from proxy.supervise.standing import Standing
from tests.fakes.fleet import watched_pool
from tests.fakes.workers import FakeFleet, FakeWorker


class Site:
    """Commands, workers, and the pool of each."""

    def __init__(self) -> None:
        self.fleet = FakeFleet()
        self.commands = Standing(self.fleet.living)
        self.pools: dict[str, Pool] = {}

    async def add(self, *names: str) -> FakeWorker:
        pool = watched_pool(*names)[0]
        gateway = _Gateway(pool)
        worker = await self.fleet.add(worker_answers(gateway))  # type: ignore[arg-type]  # nothing else is asked
        self.pools[worker.name] = pool
        return worker

    def drained(self) -> list[list[str]]:
        return [[each.name for each in pool.endpoints if each.draining] for pool in self.pools.values()]


class _Gateway:
    def __init__(self, pool: Pool) -> None:
        self.endpoints = Endpoints([pool], changed=lambda _: None)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    running = Site()
    yield running
    await running.fleet.close()


async def test_it_is_done_in_all_and_who_comes_later_is_told(site):
    for _ in range(2):
        await site.add("a", "b")
    told = await site.commands.drain("digits", "a", draining=True, uid=7)
    assert (told["pool"], told["name"], told["state"]) == ("digits", "a", "draining")
    await site.commands.tell(await site.add("a", "b"))
    assert site.drained() == [["a"], ["a"], ["a"]]
    assert (await site.commands.drain("digits", "a", draining=False, uid=7))["state"] == "healthy"
    await site.commands.tell(await site.add("a", "b"))
    assert site.drained() == [[], [], [], []]


async def test_what_nobody_can_do_is_refused_as_by_one(site):
    for _ in range(2):
        await site.add("a")
    with pytest.raises(NotDone) as refused:
        await site.commands.drain("digits", "x", draining=True, uid=0)
    assert refused.value.status == 404
    assert refused.value.document == {"error": "no endpoint of pool digits is named x", "endpoints": ["a"]}
    assert site.commands.replay() == []


async def test_what_only_some_do_is_told_and_stands(site):
    await site.add("a")
    hung = await site.add("a")
    await site.add("other")
    hung.hung = True
    with pytest.raises(NotDone) as refused:
        await site.commands.drain("digits", "a", draining=True, uid=0)
    assert (refused.value.status, refused.value.document["done"]) == (502, ["worker 1"])
    assert [each.partition(":")[0] for each in refused.value.document["failed"]] == ["worker 2", "worker 3"]
    assert "drained in worker 1 but not in worker 2: no answer" in refused.value.document["error"]
    await site.fleet.kill(hung)
    await site.commands.tell(await site.add("a"))
    assert site.drained()[-1] == ["a"]


async def test_without_workers_nothing_is_done_and_nothing_stands(site):
    with pytest.raises(NotDone, match="nowhere: there is no worker"):
        await site.commands.drain("digits", "a", draining=True, uid=0)
    assert site.commands.replay() == []


async def test_one_that_starts_is_not_waited_for_it_is_told_when_it_is_ready(site):
    await site.add("a")
    starting = await site.add("a")
    starting.state, starting.hung = "starting", True
    await site.commands.drain("digits", "a", draining=True, uid=0)
    starting.hung = False
    await site.commands.tell(starting)
    assert site.drained() == [["a"], ["a"]]


async def test_what_stands_is_bounded_and_goes_over_to_another_program(site, monkeypatch):
    await site.add("a", "b")
    monkeypatch.setattr(standing, "MOST_STANDING", 1)
    await site.commands.drain("digits", "a", draining=True, uid=0)
    with pytest.raises(NotDone, match="already"):
        await site.commands.drain("digits", "b", draining=True, uid=0)
    after = Standing(site.fleet.living)
    after.restore(site.commands.replay())
    assert after.replay() == site.commands.replay() != []


async def test_pools_are_one_document_that_names_the_silent(site):
    await site.add("a")
    (await site.add("a")).hung = True
    document = await site.commands.pools()
    assert [each["name"] for each in document["pools"][0]["endpoints"]] == ["a"]
    assert [each.partition(":")[0] for each in document["silent"]] == ["worker 2"]
