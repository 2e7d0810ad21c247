# SPDX-License-Identifier: Apache-2.0
"""A pipeline around one pool with one fake backend, and what it tells the metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from backends.asking.attempts import Attempts
from backends.choosing.picker import least_in_flight
from backends.endpoint import Endpoint
from backends.messages import Api, Reply, Request
from backends.pool import Pool
from backends.routes import Routes
from proxy.telemetry.finished import Telemetry
from proxy.telemetry.metrics import Metrics
from proxy.walk.gate import Gate
from proxy.walk.pipeline import Pipeline
from proxy.walk.pool_walk import PoolWalk
from qos.budget import Budget
from qos.classify import Policy, Rule
from qos.limit import FixedLimit
from qos.traffic_class import ClassTable, StreamPromise, TrafficClass
from tests.fakes.walk import RecordingResponder, arrival

REALTIME = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=0.05, queue_s=0.02)
DEFAULT = TrafficClass(name="interactive", rank=1, dscp=18, deadline_s=30.0, queue_s=30.0)
SHEDDABLE = TrafficClass(
    name="background",
    rank=2,
    dscp=1,
    deadline_s=30.0,
    queue_s=30.0,
    sheddable=True,
    stream=StreamPromise(stall_s=0.05, total_s=0.3),
)
CLASSES = ClassTable([REALTIME, DEFAULT, SHEDDABLE], DEFAULT)


class FakeBackend:
    """Answers as the test says."""

    def __init__(self, infer: Callable[[Request], Awaitable[Reply]], api: Api) -> None:
        self._infer = infer
        self.api = api
        self.ready = True

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def infer(self, request: Request) -> Reply:
        return await self._infer(request)

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        return Reply(body=msgspec.json.encode({"name": model, "version": version}))


class Set:
    """A pipeline around one endpoint."""

    def __init__(self, infer: Callable[[Request], Awaitable[Reply]], slots: int = 1, *, api: Api = Api.OIP) -> None:
        self.backend = FakeBackend(infer, api)
        self.endpoint = Endpoint("fake:one", self.backend, FixedLimit(slots))
        pool = Pool("main", [self.endpoint], least_in_flight)
        gate = Gate(pool, CLASSES)
        self.metrics = Metrics(version="test")
        self.pipeline = Pipeline(
            Policy(
                CLASSES,
                max_class={"door": DEFAULT, "fast": REALTIME},
                rules=[Rule(traffic_class=SHEDDABLE, model="cheap"), Rule(traffic_class=REALTIME, path="/now")],
                class_from=(),
            ),
            Routes([(pool, ["m", "cheap"])]),
            {"main": PoolWalk(gate, Attempts(gate, pool, retry=Budget(0.2)))},
            Telemetry(self.metrics),
            clock=time.monotonic,
        )

    async def ask(self, **changes: object) -> RecordingResponder:
        recorder = RecordingResponder()
        await self.pipeline(arrival(**changes), recorder)
        return recorder

    def counted(self, reason: str) -> bool:
        return f'reason="{reason}"' in self.metrics.page()[0].decode()


async def answer(request: Request) -> Reply:
    return Reply(body=await request.body.read_all(), compute_s=0.001)


async def stuck(_: Request) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError
