# SPDX-License-Identifier: Apache-2.0
"""What a worker tells its supervisor when it is asked: everything that the pages of the gateway are made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from proxy.endpoints import Commands, NotDone
from proxy.telemetry.families import Exported
from qos.diagnosis import Diagnosis
from qos.record import MOST_SAMPLES, Record, thinned

__all__ = ["MOST_TOLD", "Drain", "Telling", "records_in", "worker_answers"]

MOST_TOLD = 8192
"""Samples of finished requests in one answer, about 2 MB."""
_LEAST_SAMPLES = 4


class Drain(msgspec.Struct, frozen=True):
    """One command of an admin."""

    pool: str
    endpoint: str
    draining: bool
    uid: int = 0


class _Metrics(Protocol):
    def export(self) -> list[Exported]: ...


class _Telemetry(Protocol):
    @property
    def diagnosis(self) -> Diagnosis: ...


class _Pipeline(Protocol):
    @property
    def in_flight(self) -> int: ...


class Telling(Protocol):
    """A gateway, as far as it is asked here."""

    @property
    def metrics(self) -> _Metrics: ...
    @property
    def telemetry(self) -> _Telemetry: ...
    @property
    def pipeline(self) -> _Pipeline: ...
    @property
    def endpoints(self) -> Commands: ...
    async def not_ready(self) -> list[str]: ...


Handler = Callable[[Any], Awaitable[object]]


def worker_answers(gateway: Telling, *, clock: Callable[[], float] = time.monotonic) -> dict[str, Handler]:
    """What answers each kind of question, in plain data."""
    answers = _Answers(gateway, clock)
    return {
        "metrics": answers.metrics,
        "pools": answers.pools,
        "diagnose": answers.diagnose,
        "status": answers.status,
        "not_ready": answers.not_ready,
        "control": answers.control,
        "replay": answers.replay,
    }


class _Answers:
    def __init__(self, gateway: Telling, clock: Callable[[], float]) -> None:
        self._gateway = gateway
        self._clock = clock

    async def metrics(self, _: object) -> list[Exported]:
        return self._gateway.metrics.export()

    async def pools(self, _: object) -> Any:
        return await self._gateway.endpoints.pools()

    async def diagnose(self, _: object) -> list[bytes]:
        """Each promise's record by itself. Requests go on between one and the next."""
        records = list(self._gateway.telemetry.diagnosis.records(self._clock()))
        slices = 2 * sum(len(each.slices) for each in records) or 1
        most = min(MOST_SAMPLES, max(_LEAST_SAMPLES, MOST_TOLD // slices))
        encoded = []
        for each in records:
            encoded.append(msgspec.msgpack.encode(thinned(each, most)))
            await asyncio.sleep(0)
        return encoded

    async def status(self, _: object) -> dict[str, Any]:
        return {"in_flight": self._gateway.pipeline.in_flight}

    async def not_ready(self, _: object) -> list[str]:
        return await self._gateway.not_ready()

    async def control(self, payload: object) -> dict[str, Any]:
        """The endpoint as it is then; or, where it cannot be done, the status and why."""
        asked = msgspec.convert(payload, Drain)
        try:
            document = await self._gateway.endpoints.drain(
                asked.pool, asked.endpoint, draining=asked.draining, uid=asked.uid
            )
        except NotDone as refused:
            return {"status": refused.status, "document": refused.document}
        return {"status": 200, "document": document}

    async def replay(self, payload: object) -> int:
        """What stood before this worker was there, done again; how many of them could be."""
        done = 0
        for each in msgspec.convert(payload, list[Drain]):
            answer = await self.control(msgspec.to_builtins(each))
            done += answer["status"] == 200
        return done


def records_in(payload: object) -> list[Record]:
    """What a worker told of its promises."""
    return [msgspec.msgpack.decode(each, type=Record) for each in msgspec.convert(payload, list[bytes])]
