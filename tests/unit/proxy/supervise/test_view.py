# SPDX-License-Identifier: Apache-2.0
"""Gateways' data behind real channels, seen as one: pages, readiness, and who is missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.endpoints import Endpoints
from proxy.supervise.documents import worker_answers
from proxy.supervise.view import View
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.link_metrics import LinksSeen
from proxy.telemetry.metrics import Metrics
from qos.promise import Report
from tests.fakes.answered import answered_request
from tests.fakes.fleet import watched_pool
from tests.fakes.workers import HUNG_S, FakeFleet, FakeWorker


class Site:
    """A view, its workers, and what each of them has."""

    def __init__(self) -> None:
        self.fleet = FakeFleet()
        self.restarts: dict[int, int] = {}
        self.missing: list[str] = []
        self.view = View(self.fleet.living, restarts=lambda: self.restarts, missing=lambda: self.missing)
        self.gateways: dict[str, SimpleNamespace] = {}

    async def add(self) -> FakeWorker:
        metrics, lacks = Metrics(version="1"), []

        async def not_ready() -> list[str]:
            return lacks

        gateway = SimpleNamespace(
            metrics=metrics,
            telemetry=Telemetry(metrics, clock=lambda: 100.0),
            pipeline=SimpleNamespace(in_flight=2),
            endpoints=Endpoints([watched_pool("a", "b")[0]], changed=lambda _: None),
            not_ready=not_ready,
            lacks=lacks,
        )
        worker = await self.fleet.add(worker_answers(gateway, clock=lambda: 100.0))
        self.gateways[worker.name] = gateway
        return worker

    def finish(self, worker: FakeWorker, count: int = 1) -> None:
        for _ in range(count):
            self.gateways[worker.name].telemetry.request_finished(answered_request(), status=200, reason="ok")

    async def samples(self) -> dict[tuple[str, ...], float]:
        page, _ = await self.view.page()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
        }

    async def requests(self) -> float:
        found = await self.samples()
        return sum(value for key, value in found.items() if key[0] == "inferlane_requests_total")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    running = Site()
    yield running
    await running.fleet.close()


async def test_requests_are_counted_once_whoever_lives(site):
    first, second = await site.add(), await site.add()
    site.finish(first, 2)
    site.finish(second, 3)
    assert await site.requests() == 5
    site.finish(second)
    await site.view.leaving(second)
    await site.fleet.kill(second)
    site.view.departed(second)
    assert await site.requests() == 6
    third = await site.add()
    site.finish(third)
    assert await site.requests() == 7


async def test_a_killed_worker_s_last_counts_stay_though_nobody_said_goodbye(site):
    first, second = await site.add(), await site.add()
    site.finish(first, 2)
    site.finish(second, 3)
    assert await site.requests() == 5
    await site.fleet.kill(second)
    assert await site.requests() == 5


async def test_one_that_dies_while_another_is_waited_for_is_counted_once(site):
    first, second = await site.add(), await site.add()
    site.finish(first, 2)
    site.finish(second, 3)
    assert await site.requests() == 5
    site.finish(first)
    second.hung = True
    scraping = asyncio.create_task(site.requests())
    await asyncio.sleep(HUNG_S / 2)  # the first has answered by now
    await site.fleet.kill(first)
    site.view.departed(first)
    told = await scraping
    assert 5 <= told <= 6
    assert await site.requests() == told


async def test_one_that_hangs_is_told_and_its_counts_stay(site):
    first, second = await site.add(), await site.add()
    site.finish(first)
    site.finish(second)
    assert await site.requests() == 2
    second.hung = True
    found = await site.samples()
    assert found["inferlane_workers_silent",] == 1
    assert await site.requests() == 2


async def test_workers_restarts_and_links_are_told(site):
    first = await site.add()
    await site.add()
    first.state = "draining"
    site.restarts = {0: 2, 1: 1}
    site.view.show_links(LinksSeen(attended=False))
    found = await site.samples()
    assert [found["inferlane_workers", each] for each in ("starting", "ready", "draining")] == [0, 1, 1]
    assert found["inferlane_worker_restarts_total",] == 3
    assert found["inferlane_link_unattended",] == 1
    assert found["inferlane_build_info", "1"] == 1


async def test_it_is_ready_when_every_worker_that_matters_is(site):
    assert await site.view.not_ready() == ["no worker is there"]
    first = await site.add()
    assert await site.view.not_ready() == []
    site.gateways[first.name].lacks.append("pool digits")
    assert await site.view.not_ready() == ["pool digits"]
    second, old = await site.add(), await site.add()
    assert await site.view.not_ready() == ["worker 1: pool digits"]
    site.gateways[first.name].lacks.clear()
    old.current, old.state, old.hung = False, "draining", True  # of the generation before: nobody new goes there
    assert await site.view.not_ready() == []
    second.state = "starting"
    site.missing.append("models")
    site.view.draining = True
    assert await site.view.not_ready() == ["draining", "models", "worker 2 is starting"]
    second.state, second.hung = "ready", True
    assert "worker 2: no answer" in (await site.view.not_ready())[-1]


async def test_a_diagnosis_is_of_all_and_says_who_is_missing(site):
    for worker in (await site.add(), await site.add()):
        site.finish(worker, 3)
    report: Any = await site.view.documents["/v1/diagnose"]()
    assert isinstance(report, Report)
    assert [each.kept + each.missed for each in report.promises] == [6]
    site.fleet.workers[1].hung = True
    report = await site.view.diagnose()
    assert [each.partition(":")[0] for each in report.silent] == ["worker 2"]
    assert [each.kept + each.missed for each in report.promises] == [3]


async def test_workers_are_told_one_by_one(site):
    await site.add()
    (await site.add()).hung = True
    site.restarts = {1: 4}
    document: Any = await site.view.documents["/v1/workers"]()
    first, second = document["workers"]
    assert (first["name"], first["state"], first["in_flight"], first["restarts"]) == ("worker 1", "ready", 2, 4)
    assert first["memory_bytes"] > 1e6
    assert second["in_flight"] is None and "no answer" in second["silent"]
