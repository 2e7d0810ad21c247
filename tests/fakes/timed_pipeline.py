# SPDX-License-Identifier: Apache-2.0
"""A pipeline around one endpoint, all of it on one clock that a test turns."""

from __future__ import annotations

import asyncio

from backends.asking.attempts import Attempts
from backends.choosing.picker import least_latency
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
from qos.classify import Policy
from qos.limit import FixedLimit
from qos.traffic_class import ClassTable, TrafficClass
from tests.fakes.fake_time import FakeTimeLoop

PATIENT = TrafficClass(name="patient", rank=0, dscp=18, deadline_s=30.0, queue_s=30.0)
CLASSES = ClassTable([PATIENT], PATIENT)


class TimedPipeline:
    """The endpoint answers while `answers` is set."""

    api = Api.OIP
    ready = True

    def __init__(self, loop: FakeTimeLoop, *, slots: int = 1) -> None:
        self.answers = asyncio.Event()
        self.dispatched: list[Request] = []
        self.endpoint = Endpoint("fake:one", self, FixedLimit(slots))  # type: ignore[arg-type]  # as much as is asked
        pool = Pool("main", [self.endpoint], least_latency)
        gate = Gate(pool, CLASSES, clock=loop.time)
        attempts = Attempts(gate, pool, retry=Budget(0.2), clock=loop.time)
        self.pipeline = Pipeline(
            Policy(CLASSES, max_class={"door": PATIENT}),
            Routes([(pool, ["m"])]),
            {"main": PoolWalk(gate, attempts)},
            Telemetry(Metrics(version="test"), clock=loop.time),
            clock=loop.time,
        )

    async def infer(self, request: Request) -> Reply:
        self.dispatched.append(request)
        await self.answers.wait()
        return Reply(body=await request.body.read_all())
