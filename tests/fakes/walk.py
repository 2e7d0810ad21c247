# SPDX-License-Identifier: Apache-2.0
"""A walk for doors under test: records what arrives and answers as the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from backends.body import Body
from backends.messages import Reply
from inferlane.errors import Refused
from proxy.arrival import Answered, Arrival, Operation, Responder
from proxy.listeners.marks import Marks
from proxy.listeners.quic import Peer, Session
from qos.timeline import Timeline
from qos.traffic_class import ClassTable, TrafficClass
from tests.fakes.quic import CLIENT, Pair

CLASS = TrafficClass(name="interactive", rank=0, dscp=18, deadline_s=2.0, queue_s=2.0, priority=4)
MARKS = Marks(ClassTable([CLASS], CLASS), {}, clock=time.monotonic)
"""Where marks do not matter."""

Answer = Callable[[Arrival], Awaitable[Reply]]


class FakeWalk:
    """Answers every arrival with `answer`; a Refused that it raises is the refusal."""

    def __init__(self, answer: Answer, judge: Callable[[Arrival], TrafficClass] = lambda _: CLASS) -> None:
        self.answer = answer
        self.judge = judge
        self.arrivals: list[Arrival] = []
        self.answered: list[Answered] = []
        self.cancelled = 0

    async def __call__(self, arrival: Arrival, responder: Responder) -> None:
        self.arrivals.append(arrival)
        judged = self.judge(arrival)
        answered = Answered(arrival=arrival, traffic_class=judged, why="default class", trusted=False, deadline=1e9)
        self.answered.append(answered)
        responder.judged(answered)
        try:
            if arrival.refusal is not None:
                raise arrival.refusal
            await responder.reply(await self.answer(arrival), answered)
        except Refused as refusal:
            await responder.refuse(refusal, answered)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class RecordingResponder:
    """A door that writes down what it is told."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.refusals: list[Refused] = []
        self.answered: list[Answered] = []
        self.classes: list[TrafficClass] = []

    def judged(self, answered: Answered) -> None:
        self.classes.append(answered.traffic_class)

    async def reply(self, reply: Reply, answered: Answered) -> None:
        self.replies.append(reply)
        self.answered.append(answered)

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        self.refusals.append(refusal)
        self.answered.append(answered)


def arrival(body: bytes | Body = b"{}", **changes: object) -> Arrival:
    """An inference for model m, as an HTTP/3 door would hand it on."""
    facts: dict[str, object] = {
        "request_id": "r1",
        "transport": "h3",
        "listener": "door",
        "client": "127.0.0.1",
        "dscp": 0,
        "path": "/v2/models/m/infer",
        "operation": Operation.INFER,
        "model": "m",
        "body": body if isinstance(body, Body) else Body.of(body),
        "timeline": Timeline(time.monotonic()),
    }
    return Arrival(**(facts | changes))  # type: ignore[arg-type]  # the test's own words


REALTIME = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=2.0, queue_s=2.0, priority=6, police=8)
BATCH = TrafficClass(name="batch", rank=1, dscp=10, deadline_s=2.0, queue_s=2.0)


def by_name(arrival: Arrival) -> TrafficClass:
    """The class that was asked for: realtime, which lends its mark to a byte a second, or batch."""
    return REALTIME if arrival.asked_class == "realtime" else BATCH


def policing() -> Marks:
    """Of these two classes."""
    return Marks(ClassTable([REALTIME, BATCH], BATCH), {"main": "realtime"}, clock=time.monotonic)


async def echo(arrival: Arrival) -> Reply:
    """The body, as it came."""
    return Reply(body=await arrival.body.read_all(), json_length=arrival.json_length)


async def never(arrival: Arrival) -> Reply:
    """No answer, for ever."""
    await asyncio.Event().wait()
    raise AssertionError(arrival)


def pieces(*chunks: bytes, error: Refused | None = None) -> AsyncGenerator[bytes, None]:
    """A piecewise body that may break off."""

    async def body() -> AsyncGenerator[bytes, None]:
        for chunk in chunks:
            yield chunk
        if error is not None:
            raise error

    return body()


class _Listener:
    """The part of a QuicListener that a Peer needs."""

    def __init__(self, marks: Marks) -> None:
        self.flushes = 0
        self.marks = marks

    def schedule_flush(self, peer: Peer) -> None:
        self.flushes += 1


class Conversation:
    """A pair whose server events go to a session, with the event loop's turn in between."""

    def __init__(
        self, tmp_path: Path, alpn: str, session_for: Callable[[Peer], Session], *, marks: Marks | None = None
    ) -> None:
        self.pair = Pair(tmp_path, alpn=alpn)
        self.pair.server_events.clear()
        self.peer = Peer(_Listener(marks or MARKS), self.pair.server, CLIENT, 0)  # type: ignore[arg-type]  # the part that counts
        self.session = session_for(self.peer)
        self.peer.session = self.session

    async def run(self, rounds: int = 8) -> None:
        for _ in range(rounds):
            self.pair.run(1)
            for event in self.pair.server_events:
                self.session.handle(event)
            self.pair.server_events.clear()
            self.peer.pump()
            for _ in range(4):
                await asyncio.sleep(0)
