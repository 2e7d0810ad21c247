# SPDX-License-Identifier: Apache-2.0
"""One gate and those who enter it, by name, on a clock that the test turns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from backends.messages import Request
from backends.outcome import Outcome
from inferlane.errors import Refused
from proxy.walk.gate import Gate, Place
from tests.fakes.endpoints import request_for, traffic_class
from tests.fakes.fake_time import FakeTimeLoop


@dataclass
class Story:
    """One gate and the names of those who entered it, as told by a test."""

    loop: FakeTimeLoop
    gate: Gate
    entered: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    refusals: dict[str, Refused] = field(default_factory=dict)

    def arrives(
        self, name: str, rank: int = 0, *, settle: bool = True, queue_s: float = 1.0, **request: object
    ) -> None:
        avoid = request.pop("avoid", frozenset())
        asked = request_for(traffic_class(rank, queue_s=queue_s), now=self.loop.now, **request)
        self.tasks[name] = self.loop.create_task(self._enter(name, asked, avoid))
        if settle:
            self.loop.settle()

    async def _enter(self, name: str, asked: Request, avoid: frozenset[str]) -> None:
        try:
            self.places[name] = await self.gate.enter(asked, avoid=avoid)
        except Refused as refusal:
            self.refusals[name] = refusal
        else:
            self.entered.append(name)

    def leaves(self, name: str) -> None:
        self.places[name].leave(Outcome.unused())
        self.loop.settle()
