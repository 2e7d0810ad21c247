# SPDX-License-Identifier: Apache-2.0
"""What is answered without a place: metadata, readiness, and the models of OpenAI-compatible pools."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from backends.choosing.picker import least_in_flight
from backends.endpoint import Endpoint
from backends.messages import Reply
from backends.pool import Pool
from backends.remote.openai import OpenAiBackend
from backends.routes import Routes
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Operation
from proxy.walk.describing import Describing
from qos.limit import FixedLimit
from tests.fakes.endpoints import pool_of, traffic_class
from tests.fakes.openai_server import OpenAiServer, Script
from tests.fakes.walk import arrival


def asking(operation: Operation, model: str = "") -> Answered:
    arrived = arrival(operation=operation, model=model)
    return Answered(
        arrival=arrived,
        traffic_class=traffic_class(0),
        why="default class",
        trusted=False,
        deadline=arrived.timeline.received + 10.0,
    )


def describing_of(routes: Sequence[tuple[Pool, Sequence[str]]]) -> Describing:
    return Describing(Routes(routes), clock=time.monotonic)


async def told(describing: Describing, operation: Operation, model: str = "", *, draining: bool = False):
    reply = await describing.reply(asking(operation, model), draining=draining)
    return reply.status, json.loads(reply.body)


async def test_a_gateway_is_live_and_ready_while_its_pools_are_and_it_does_not_drain() -> None:
    pool = pool_of(1)
    describing = describing_of([(pool, ["m"])])
    assert await told(describing, Operation.LIVE) == (200, {"live": True})
    assert await told(describing, Operation.READY) == (200, {"ready": True})
    assert await told(describing, Operation.READY, draining=True) == (503, {"ready": False})
    pool.endpoints[0].backend.ready = False
    assert await told(describing, Operation.READY) == (503, {"ready": False})
    assert await told(describing, Operation.MODEL_READY, "m") == (503, {"ready": False})
    assert (await told(describing, Operation.SERVER_METADATA))[1]["name"] == "inferlane"


async def test_nobody_is_asked_for_metadata_who_could_not_answer() -> None:
    pool = pool_of(1)
    pool.endpoints[0].draining = True
    with pytest.raises(Refused) as caught:
        await told(describing_of([(pool, ["m"])]), Operation.METADATA, "m")
    assert caught.value.reason is Reason.NO_ENDPOINT


async def test_one_that_fails_is_asked_last() -> None:
    pool = pool_of(1, 1)
    asked = []

    async def metadata(model: str, version: str, *, deadline: float) -> Reply:
        asked.append(model)
        return Reply(body=b"{}")

    failing, well = pool.endpoints
    well.backend.metadata = metadata  # type: ignore[method-assign]
    for _ in range(pool.rules.failures):
        failing.health.failed(0.0)
    assert failing.state(0.0) == "ejected"
    assert await told(describing_of([(pool, ["m"])]), Operation.METADATA, "m") == (
        200,
        {},
    )
    assert asked == ["m"]


@pytest.fixture
async def servers() -> AsyncIterator[list[OpenAiServer]]:
    found = [OpenAiServer(Script(models=("tiny", "elsewhere"))), OpenAiServer(Script(models=("large", "tiny")))]
    for each in found:
        await each.start()
    yield found
    for each in found:
        await each.close()


async def openai_pool(name: str, *urls: str) -> Pool:
    endpoints = [Endpoint(f"{name}{n}", OpenAiBackend(url, slots=1), FixedLimit(1)) for n, url in enumerate(urls)]
    pool = Pool(name, endpoints, least_in_flight)
    await pool.start()
    return pool


async def test_models_are_told_once_and_only_where_requests_for_them_go(servers: list[OpenAiServer]) -> None:
    small, large = await openai_pool("small", servers[0].url), await openai_pool("large", servers[1].url)
    describing = Describing(
        clock=time.monotonic, routes=Routes([(small, ["tiny"]), (large, ["large"]), (pool_of(1), ["m"])])
    )
    status, document = await told(describing, Operation.OPENAI_MODELS)
    assert (status, document["object"]) == (200, "list")
    assert [each["id"] for each in document["data"]] == ["tiny", "large"]
    assert (await told(describing, Operation.OPENAI_MODELS, "large"))[1]["id"] == "large"
    with pytest.raises(Refused) as caught:
        await told(describing, Operation.OPENAI_MODELS, "elsewhere")
    assert caught.value.reason is Reason.UNKNOWN_MODEL
    await small.close()
    await large.close()


async def test_a_silent_server_is_passed_over(servers: list[OpenAiServer]) -> None:
    dead = await openai_pool("dead", "http://127.0.0.1:1", servers[0].url)
    gone = await openai_pool("gone", "http://127.0.0.1:1")
    _, document = await told(describing_of([(dead, ["tiny"]), (gone, ["*"])]), Operation.OPENAI_MODELS)
    assert [each["id"] for each in document["data"]] == ["tiny"]
    await dead.close()
    await gone.close()
