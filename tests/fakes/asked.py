# SPDX-License-Identifier: Apache-2.0
"""Endpoints that answer as they are told, and places at them that notice whether each is left exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backends.messages import Reply, Request
from backends.outcome import Ending, Outcome
from inferlane.errors import Reason, Refused
from qos.latency import Latencies

Answer = Reply | BaseException | None
"""None: no answer until `release`."""


class FakePieces:
    """A body of these pieces; an exception among them breaks it off, None never comes."""

    def __init__(self, *pieces: bytes | BaseException | None) -> None:
        self._pieces = list(pieces)
        self.closed = 0

    def __aiter__(self) -> FakePieces:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        piece = self._pieces.pop(0)
        if piece is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def aclose(self) -> None:
        self.closed += 1


class AskedEndpoint:
    """Its own backend: answers are given in turn, the last one for ever."""

    def __init__(self, name: str, *answers: Answer, slots: int = 1) -> None:
        self.name = name
        self.slots = slots
        self.in_flight = 0
        self.admitted = True
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.outcomes: list[Outcome] = []
        self.cancelled = 0
        self.stamps: float | None = None
        """What it stamps as first byte; None: nothing."""
        self._answers = list(answers)
        self._released: asyncio.Future[Answer] | None = None

    @property
    def backend(self) -> AskedEndpoint:
        return self

    @property
    def endings(self) -> list[Ending]:
        return [each.ending for each in self.outcomes]

    @property
    def waits(self) -> bool:
        """Whether somebody waits for `release`."""
        return self._released is not None and not self._released.done()

    def admits(self, now: float) -> bool:
        return self.admitted

    def release(self, answer: Reply | BaseException) -> None:
        """The answer that is being waited for."""
        assert self._released is not None
        self._released.set_result(answer)

    async def infer(self, request: Request) -> Reply:
        self.requests.append(request)
        self.bodies.append(await request.body.read_all())
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            self._released = asyncio.get_running_loop().create_future()
            try:
                answer = await self._released
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.stamps is not None:
            request.timeline.first_byte = self.stamps
        if isinstance(answer, BaseException):
            raise answer
        assert answer is not None
        return answer


class AskedPlace:
    """Raises where it is left twice."""

    def __init__(self, endpoint: AskedEndpoint) -> None:
        self.endpoint = endpoint
        self._left = False
        endpoint.in_flight += 1

    def leave(self, outcome: Outcome) -> None:
        assert not self._left, f"a place at {self.endpoint.name} was left twice"
        self._left = True
        self.endpoint.in_flight -= 1
        self.endpoint.outcomes.append(outcome)


class AskedPool:
    """The places and the pool of `Attempts` in one. Nobody waits: who finds no place is refused."""

    def __init__(self, *endpoints: AskedEndpoint) -> None:
        self.endpoints = endpoints
        self.known = Latencies()
        self.begun: list[tuple[str, float, str]] = []
        self.sparing = True

    @property
    def held(self) -> int:
        return sum(each.in_flight for each in self.endpoints)

    def latencies(self, class_name: str) -> Latencies:
        return self.known

    def first_byte(self, endpoint: AskedEndpoint, latency_s: float, class_name: str, now: float) -> None:
        self.begun.append((endpoint.name, latency_s, class_name))

    async def enter(self, request: Request, *, avoid: frozenset[str]) -> AskedPlace:
        await asyncio.sleep(0)
        free = _free(self.endpoints)
        found = next((each for each in free if each.name not in avoid), free[0] if free else None)
        if found is None:
            raise Refused(Reason.QUEUE_FULL, "no place")
        return AskedPlace(found)

    def spare(self, request: Request, *, avoid: frozenset[str]) -> AskedPlace | None:
        found = next((each for each in _free(self.endpoints) if each.name not in avoid), None)
        return AskedPlace(found) if self.sparing and found is not None else None


def _free(endpoints: Sequence[AskedEndpoint]) -> list[AskedEndpoint]:
    return [each for each in endpoints if each.in_flight < each.slots]
