# SPDX-License-Identifier: Apache-2.0
"""A worker's answers, over a real channel and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import msgspec
import pytest

from proxy.endpoints import Endpoints
from proxy.supervise.documents import MOST_TOLD, Drain, records_in, worker_answers
from proxy.telemetry.families import Exported
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from tests.fakes.answered import answered_request
from tests.fakes.fleet import watched_pool
from tests.fakes.workers import FakeFleet


def gateway() -> SimpleNamespace:
    """A gateway, as far as it is asked."""

    async def not_ready() -> list[str]:
        return ["pool digits"]

    metrics = Metrics(version="1")
    pool = watched_pool("a", "b")[0]
    return SimpleNamespace(
        metrics=metrics,
        telemetry=Telemetry(metrics),
        pipeline=SimpleNamespace(in_flight=3),
        endpoints=Endpoints([pool], changed=lambda _: None),
        not_ready=not_ready,
        pool=pool,
    )


@pytest.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    running = FakeFleet()
    yield running
    await running.close()


async def test_what_crosses_the_channel_is_what_was_told(fleet):
    site = gateway()
    worker = await fleet.add(worker_answers(site))
    site.telemetry.request_finished(answered_request(), status=200, reason="ok")
    told = await worker.ask("metrics", timeout_s=5.0)
    exports = msgspec.convert(told, list[Exported])
    assert {each.name for each in exports} >= {"inferlane_requests", "inferlane_stage_seconds", "process_cpu_seconds"}
    assert await worker.ask("status", timeout_s=5.0) == {"in_flight": 3}
    assert await worker.ask("not_ready", timeout_s=5.0) == ["pool digits"]
    assert await worker.ask("pools", timeout_s=5.0) == await site.endpoints.pools()


async def test_records_cross_it_and_are_bounded(fleet):
    site = gateway()
    worker = await fleet.add(worker_answers(site, clock=lambda: 100.0))
    for _ in range(300):
        site.telemetry.request_finished(answered_request(), status=200, reason="ok")
    (record,) = records_in(await worker.ask("diagnose", timeout_s=5.0))
    assert sum(each.kept.count for each in record.slices) == 300
    assert sum(len(each.kept.samples) for each in record.slices) <= MOST_TOLD


async def test_a_command_is_done_and_a_refusal_is_an_answer(fleet):
    site = gateway()
    worker = await fleet.add(worker_answers(site))
    done = await worker.ask("control", Drain("digits", "a", True), timeout_s=5.0)
    assert (done["status"], done["document"]["state"]) == (200, "draining")
    refused = await worker.ask("control", Drain("digits", "x", True), timeout_s=5.0)
    assert (refused["status"], refused["document"]["endpoints"]) == (404, ["a", "b"])


async def test_what_stood_is_done_again_and_what_cannot_be_is_passed_over(fleet):
    site = gateway()
    worker = await fleet.add(worker_answers(site))
    standing = [Drain("digits", "gone", True), Drain("digits", "b", True)]
    assert await worker.ask("replay", standing, timeout_s=5.0) == 1
    assert [each.draining for each in site.pool.endpoints] == [False, True]
