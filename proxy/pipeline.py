# SPDX-License-Identifier: Apache-2.0
"""The walk of one request, on one screen: classify, find the pool, wait for a place, forward, reply, record.

Whatever goes wrong on the way is a Refused; it is answered here, once, through the door the request came by.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

import msgspec
import structlog

from backends.endpoint import Endpoint
from backends.messages import Reply, Request
from backends.pool import Pool
from backends.routes import Routes
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Arrival, Operation, Responder
from proxy.gate import Gate
from proxy.telemetry.finished import Telemetry
from qos.classify import Policy, classify

__all__ = ["VERSION", "Pipeline"]

GATHERED = 256 * 1024
"""A body of at most so many bytes is here before it gets a place."""
VERSION = "0.1.0"
"""The gateway's, as pyproject.toml has it."""
_JSON = ((b"content-type", b"application/json"),)
_SERVER = msgspec.json.encode({"name": "inferlane", "version": VERSION, "extensions": ["binary_tensor_data"]})
_log = structlog.get_logger("inferlane.pipeline")


class Pipeline:
    """Calls itself once per arrival. Never raises but CancelledError: the client went away."""

    def __init__(
        self,
        policy: Policy,
        routes: Routes,
        gates: Mapping[str, Gate],
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.policy = policy
        """Who gets which class from now on; who has one keeps it, and what it promised."""
        self._routes = routes
        self._gates = gates
        self._telemetry = telemetry
        self._clock = clock
        self.in_flight = 0
        self.draining = False

    def __repr__(self) -> str:
        return f"<Pipeline {self.in_flight} in flight{', draining' if self.draining else ''}>"

    async def __call__(self, arrival: Arrival, responder: Responder) -> None:
        answered = self._judge(arrival)
        status, reason = Reason.CANCELLED.status, Reason.CANCELLED.label
        self.in_flight += 1
        try:
            responder.judged(answered)
            async with asyncio.timeout_at(answered.deadline):
                reply = await self._answer(arrival, answered, responder)
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

    async def _answer(self, arrival: Arrival, answered: Answered, responder: Responder) -> Reply:
        if arrival.refusal is not None:
            raise arrival.refusal
        if self._clock() >= answered.deadline:
            raise TimeoutError  # asyncio's timeout strikes at a wait only, and a quick backend never waits
        if arrival.operation is Operation.INFER:
            return await self._infer(arrival, answered, responder)
        reply = await self._describe(arrival, answered)
        await _send(reply, responder, answered)
        return reply

    async def _infer(self, arrival: Arrival, answered: Answered, responder: Responder) -> Reply:
        if self.draining:
            raise Refused(Reason.DRAINING, "this gateway is shutting down; connect again", retry_after_s=1.0)
        pool = self._pool(arrival, answered)
        request = _request(arrival, answered)
        gate = self._gates[pool.name]
        # A client that sends slowly holds no place meanwhile, and a body that is not as long as its head says goes
        # nowhere. Longer ones are forwarded as they come.
        await arrival.body.gather(GATHERED)
        arrival.timeline.queued = self._clock()
        # Late binding: an endpoint is chosen when it has a place, not before (DESIGN.md, decision 3).
        endpoint = await gate.enter(request)
        answered.endpoint = endpoint.name
        arrival.timeline.dispatched = self._clock()
        try:
            reply = await self._forward(endpoint, request)
            if not isinstance(reply.body, bytes):
                # The place is held until the last byte is out: a piecewise reply still occupies its backend.
                await _send(reply, responder, answered)
        finally:
            gate.leave(endpoint)
        if isinstance(reply.body, bytes):
            # Nobody's place must wait for a whole reply that its class's `police` rate holds back.
            await _send(reply, responder, answered)
        return reply

    async def _forward(self, endpoint: Endpoint, request: Request) -> Reply:
        reply = await endpoint.backend.infer(request)
        if request.timeline.first_byte is None:
            request.timeline.first_byte = self._clock()
        request.timeline.compute_s = reply.compute_s
        return reply

    async def _describe(self, arrival: Arrival, answered: Answered) -> Reply:
        """Everything but inference: answered here, or by a backend without a place, for it costs no GPU time."""
        match arrival.operation:
            case Operation.SERVER_METADATA:
                return Reply(body=_SERVER, fields=_JSON)
            case Operation.LIVE:
                return Reply(body=b'{"live":true}', fields=_JSON)
            case Operation.READY:
                return _readiness(all(pool.ready for pool in self._routes.pools) and not self.draining)
            case Operation.MODEL_READY:
                return _readiness(self._pool(arrival, answered).ready)
            case _:
                endpoint = next((each for each in self._pool(arrival, answered).endpoints if each.backend.ready), None)
                if endpoint is None:
                    raise Refused(Reason.NO_ENDPOINT, f"pool {answered.pool} has no endpoint ready", retry_after_s=1.0)
                return await endpoint.backend.metadata(arrival.model, arrival.version, deadline=answered.deadline)

    def _pool(self, arrival: Arrival, answered: Answered) -> Pool:
        pool = self._routes.pool_for(arrival.model)
        if pool is None:
            raise Refused(Reason.UNKNOWN_MODEL, f"no pool here serves model {arrival.model!r}")
        answered.pool = pool.name
        return pool


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
    return (Reason.BAD_REQUEST if status < 500 else Reason.BACKEND_FAILED).label


def _request(arrival: Arrival, answered: Answered) -> Request:
    return Request(
        request_id=arrival.request_id,
        model=arrival.model,
        version=arrival.version,
        traffic_class=answered.traffic_class,
        deadline=answered.deadline,
        body=arrival.body,
        json_length=arrival.json_length,
        timeline=arrival.timeline,
        fields=arrival.fields,
        traceparent=arrival.traceparent,
        dscp_seen=arrival.dscp,
    )


def _readiness(ready: bool) -> Reply:
    return Reply(status=200 if ready else 503, body=b'{"ready":true}' if ready else b'{"ready":false}', fields=_JSON)


def _spent(arrival: Arrival, answered: Answered) -> str:
    """Where the time of a request that missed its deadline went."""
    budget_ms = math.floor((answered.deadline - arrival.timeline.received) * 1e3)
    if arrival.timeline.first_byte is not None:
        where = "while the reply was sent"
    elif not arrival.body.ended:
        where = f"with {arrival.body.received} bytes of the body here and its end still to come"
    elif arrival.timeline.dispatched is None:
        where = "waiting in the gateway"
    else:
        where = f"waiting for {answered.pool}"
    return f"the deadline of {budget_ms} ms passed {where}"
