# SPDX-License-Identifier: Apache-2.0
"""The walk of one request, on one screen: classify, find the pool, wait for a place, forward, reply, record.

Whatever goes wrong on the way is a Refused; it is answered here, once, through the door the request came by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf

import structlog

from backends.asking.attempts import Attempts
from backends.body import Body
from backends.messages import Api, Reply, Request
from backends.pool import Pool
from backends.routes import Routes
from backends.unread import Unread
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Arrival, Operation, Responder
from proxy.protocols.openai_http import read_head
from proxy.telemetry.finished import Telemetry
from proxy.walk import refusals
from proxy.walk.deadlines import Deadline, Deadlines
from proxy.walk.describing import VERSION, Describing
from proxy.walk.eviction import Evictable
from proxy.walk.pool_walk import PoolWalk
from proxy.walk.token_stream import TokenStream
from qos.classify import Policy, classify

__all__ = ["VERSION", "Pipeline"]

GATHERED = 256 * 1024
"""A body of at most so many bytes is here before it gets a place."""
MOST_READING = 256 << 20
"""Bytes of bodies whose model is named inside them, of all that are read at once."""
_PATHS = {Api.OIP: "/v2/models/NAME/infer", Api.OPENAI: "the OpenAI-compatible /v1 paths"}
_log = structlog.get_logger("inferlane.pipeline")


class Pipeline:
    """Calls itself once per arrival. Never raises but CancelledError: the client went away."""

    def __init__(
        self,
        policy: Policy,
        routes: Routes,
        walks: Mapping[str, PoolWalk],
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.policy = policy
        """Who gets which class from now on; who has one keeps it, and what it promised."""
        self._routes = routes
        self._walks = walks
        self._describing = Describing(routes, clock=clock)
        self._telemetry = telemetry
        self._clock = clock
        self._deadlines = Deadlines(clock)
        self._reading = 0
        self._unread = Unread()
        self.in_flight = 0
        self.draining = False
        self.moved: frozenset[str] = frozenset()
        """Transports whose clients must ask another process of this gateway, which they find by connecting again."""

    def __repr__(self) -> str:
        return f"<Pipeline {self.in_flight} in flight{', draining' if self.draining else ''}>"

    async def __call__(self, arrival: Arrival, responder: Responder) -> None:
        answered = self._judge(arrival)
        status, reason = Reason.CANCELLED.status, Reason.CANCELLED.label
        self.in_flight += 1
        arrival.body.count_in(self._unread)
        try:
            with self._deadlines.until(answered.deadline) as limit:
                reply = await self._answer(arrival, answered, responder, limit)
            status, reason = reply.status, _reason_of(reply.status)
        except Refused as refusal:
            status, reason = await _refuse(refusal, responder, answered)
        except TimeoutError:
            late = Refused(Reason.DEADLINE, _spent(arrival, answered))
            status, reason = await _refuse(late, responder, answered)
        except Exception:  # noqa: BLE001  the owner of every failure nobody foresaw: logged, answered, never fatal
            _log.exception("walk_failed", request_id=arrival.request_id)
            bug = Refused(Reason.INTERNAL, "a fault in the gateway; its log has the request id")
            status, reason = await _refuse(bug, responder, answered)
        finally:
            self.in_flight -= 1
            if not arrival.body.drained:
                arrival.body.fail(Refused(Reason.CANCELLED, "the request is over"))
            arrival.timeline.finished = self._clock()
            self._telemetry.request_finished(answered, status=status, reason=reason)

    def _judge(self, arrival: Arrival) -> Answered:
        """The class comes first: it decides the deadline of everything after it."""
        verdict = classify(arrival, self.policy)
        allowed = verdict.traffic_class.deadline_s
        budget = allowed if arrival.timeout_s is None else min(allowed, arrival.timeout_s)
        return Answered(
            arrival=arrival,
            traffic_class=verdict.traffic_class,
            why=verdict.why,
            trusted=verdict.trusted,
            deadline=arrival.timeline.received + budget,
        )

    async def _answer(self, arrival: Arrival, answered: Answered, responder: Responder, limit: Deadline) -> Reply:
        if arrival.refusal is None and arrival.operation is Operation.OPENAI:
            await self._read_model(arrival, answered)
            limit.move(answered.deadline)
        responder.judged(answered)
        if arrival.refusal is not None:
            raise arrival.refusal
        if self._clock() >= answered.deadline:
            raise TimeoutError  # the timer strikes at a wait only, and a quick backend never waits
        if arrival.operation in (Operation.INFER, Operation.OPENAI):
            return await self._infer(arrival, answered, responder, limit)
        reply = await self._describing.reply(answered, draining=self.draining)
        await _send(reply, responder, answered)
        return reply

    async def _read_model(self, arrival: Arrival, answered: Answered) -> None:
        """An OpenAI-compatible request names its model in its body, so its class may be another once that is read."""
        payload = await self._read_whole(arrival.body)
        head = read_head(payload)
        arrival.model, answered.streaming = head.model, bool(head.stream)
        arrival.whole = payload
        again = self._judge(arrival)
        answered.traffic_class, answered.why, answered.deadline = again.traffic_class, again.why, again.deadline

    async def _read_whole(self, body: Body) -> bytes:
        pieces = []
        size = 0
        try:
            while piece := await body.read():
                pieces.append(piece)
                size += len(piece)
                self._reading += len(piece)
                if self._reading > MOST_READING:
                    detail = f"bodies of {self._reading} bytes are being read here already"
                    raise Refused(Reason.QUEUE_FULL, detail, retry_after_s=1.0)
        finally:
            self._reading -= size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _infer(self, arrival: Arrival, answered: Answered, responder: Responder, limit: Deadline) -> Reply:
        if self.draining:
            raise Refused(Reason.DRAINING, "this gateway is shutting down; connect again", retry_after_s=1.0)
        if arrival.transport in self.moved:
            raise Refused(Reason.DRAINING, "a newer process serves here now; connect again, at once")
        pool = self._describing.pool(answered)
        _check_api(pool, arrival.operation)
        # A client that sends slowly holds no place meanwhile, and a body that is not as long as its head says goes
        # nowhere. Longer ones are forwarded as they come.
        if not arrival.body.complete:
            await arrival.body.gather(GATHERED)
        arrival.timeline.queued = self._clock()
        request = _request(arrival, answered)
        attempts = self._walks[pool.name].attempts
        if not answered.traffic_class.sheddable:
            return await self._attempt(attempts, request, answered, responder, limit)
        with Evictable(refusals.evicted(pool.name, answered.traffic_class.name)) as scope:
            request.evict = scope.evict
            return await self._attempt(attempts, request, answered, responder, limit)

    async def _attempt(
        self, attempts: Attempts, request: Request, answered: Answered, responder: Responder, limit: Deadline
    ) -> Reply:
        # Late binding: an endpoint is chosen when it has a place, not before (DESIGN.md, decision 3).
        attempt = await attempts.infer(request, asking=answered.asked)
        reply = attempt.reply
        answered.endpoint, answered.hedged = attempt.endpoint, attempt.hedged
        request.timeline.compute_s, request.timeline.backend_queue_s = reply.compute_s, reply.backend_queue_s
        try:
            if not isinstance(reply.body, bytes):
                # The place is held until the last byte is out: a piecewise reply still occupies its backend.
                await self._send_pieces(reply, responder, answered, limit)
        except BaseException as error:
            attempt.leave(error)
            raise
        attempt.leave()
        if isinstance(reply.body, bytes):
            # Nobody's place must wait for a whole reply that its class's `police` rate holds back.
            await responder.reply(reply, answered)
        return reply

    async def _send_pieces(self, reply: Reply, responder: Responder, answered: Answered, limit: Deadline) -> None:
        answered.streaming = reply.streaming
        if not reply.streaming or isinstance(reply.body, bytes):
            await _send(reply, responder, answered)
            return
        limit.when = inf  # the class's deadline was until the first byte, which is here
        with self._deadlines.until(inf) as bound:
            stream = TokenStream(reply.body, answered, bound, self._telemetry, clock=self._clock)
            try:
                await _send(replace(reply, body=stream), responder, answered)
            except asyncio.CancelledError:
                if bound.expired:
                    raise stream.late() from None
                raise


async def _refuse(refusal: Refused, responder: Responder, answered: Answered) -> tuple[int, str]:
    """Answer with a refusal; status and reason for the record."""
    answered.detail = refusal.detail or None
    try:
        await responder.refuse(refusal, answered)
    except Exception:  # noqa: BLE001  nobody is left to tell: the log is all there is
        _log.exception("refusal_failed", request_id=answered.arrival.request_id)
    return refusal.status, refusal.reason.label


async def _send(reply: Reply, responder: Responder, answered: Answered) -> None:
    try:
        await responder.reply(reply, answered)
    finally:
        if not isinstance(reply.body, bytes):
            await reply.body.aclose()


def _reason_of(status: int) -> str:
    """A backend's own refusal passes through as it is; in the books it is one all the same."""
    if status < 400:
        return "ok"
    # 429 is none of the request's faults: the endpoint has no room, as backends/asking/verdict.py judges it.
    return (Reason.BAD_REQUEST if status < 500 and status != 429 else Reason.BACKEND_FAILED).label


def _request(arrival: Arrival, answered: Answered) -> Request:
    return Request(
        request_id=arrival.request_id,
        model=arrival.model,
        version=arrival.version,
        traffic_class=answered.traffic_class,
        deadline=answered.deadline,
        body=arrival.body if arrival.whole is None else Body.of(arrival.whole),
        json_length=arrival.json_length,
        timeline=arrival.timeline,
        fields=arrival.fields,
        traceparent=arrival.traceparent,
        dscp_seen=arrival.dscp,
        client=arrival.client,
        path="" if arrival.operation is Operation.INFER else arrival.path,
        streaming=answered.streaming,
    )


def _check_api(pool: Pool, operation: Operation) -> None:
    spoken = Api.OPENAI if operation is Operation.OPENAI else Api.OIP
    if pool.api is not spoken:
        detail = f"the model's pool, {pool.name}, is asked at {_PATHS[pool.api]}, not at {_PATHS[spoken]}"
        raise Refused(Reason.NOT_FOUND, detail)


def _spent(arrival: Arrival, answered: Answered) -> str:
    """Where the time of a request that missed its deadline went."""
    budget_ms = round((answered.deadline - arrival.timeline.received) * 1e3)
    if arrival.timeline.first_byte is not None:
        where = "while the reply was sent"
    elif not arrival.body.ended:
        where = f"with {arrival.body.received} bytes of the body here and its end still to come"
    elif arrival.timeline.dispatched is None:
        where = "waiting in the gateway"
    else:
        where = f"waiting for {answered.pool}"
    return f"the deadline of {budget_ms} ms passed {where}"
