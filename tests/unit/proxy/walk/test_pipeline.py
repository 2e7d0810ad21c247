# SPDX-License-Identifier: Apache-2.0
"""The walk with a fake backend: however a request ends, it is answered once, counted once, and gives its place back."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from backends.body import Body
from backends.messages import Reply, Request
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Operation
from qos.timeline import Timeline
from tests.fakes.one_pool import DEFAULT, Set, answer, stuck
from tests.fakes.walk import RecordingResponder, arrival


async def test_a_request_walks_through_and_its_place_comes_back() -> None:
    walk = Set(answer)
    recorder = await walk.ask()
    assert [each.body for each in recorder.replies] == [b"{}"]
    (answered,) = recorder.answered
    assert (answered.traffic_class, answered.pool, answered.endpoint) == (DEFAULT, "main", "fake:one")
    parts = answered.arrival.timeline.parts()
    assert parts.queue is not None
    assert parts.backend is not None
    assert parts.compute == 0.001
    assert walk.endpoint.in_flight == 0
    assert walk.counted("ok")


async def test_the_door_learns_the_class_before_anything_else_happens() -> None:
    recorder = RecordingResponder()
    walk = Set(answer)
    arriving = Body(limit=100)
    task = asyncio.create_task(walk.pipeline(arrival(arriving, listener="fast"), recorder))
    await asyncio.sleep(0)
    assert recorder.classes == [DEFAULT]
    arriving.feed(b"{}", ended=True)
    await task
    refused = await walk.ask(refusal=Refused(Reason.BAD_REQUEST, "two hosts"))
    assert refused.classes == [DEFAULT]


async def test_a_whole_reply_that_goes_out_slowly_holds_no_place() -> None:
    class Slow(RecordingResponder):
        async def reply(self, reply: Reply, answered: Answered) -> None:
            await asyncio.Event().wait()

    walk = Set(answer)
    slow = asyncio.create_task(walk.pipeline(arrival(), Slow()))
    assert len((await walk.ask()).replies) == 1
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_body_that_comes_slowly_holds_no_place() -> None:
    walk, body = Set(answer), Body(limit=100)
    slow = asyncio.ensure_future(walk.ask(body=body))
    body.feed(b"sl", ended=False)
    assert len((await walk.ask()).replies) == 1
    body.feed(b"ow", ended=True)
    assert [each.body for each in (await slow).replies] == [b"slow"]


async def test_a_body_that_breaks_off_reaches_no_backend() -> None:
    async def unreachable(_: Request) -> Reply:
        raise AssertionError

    walk, body = Set(unreachable), Body(limit=100)
    slow = asyncio.ensure_future(walk.ask(body=body))
    body.feed(b"sl", ended=False)
    body.fail(Refused(Reason.BAD_REQUEST, "content-length says 9 bytes, 2 came"))
    assert [each.reason for each in (await slow).refusals] == [Reason.BAD_REQUEST]


async def test_what_the_door_refused_is_answered_and_counted_and_goes_no_further() -> None:
    async def unreachable(_: Request) -> Reply:
        raise AssertionError

    walk = Set(unreachable)
    recorder = await walk.ask(refusal=Refused(Reason.BAD_REQUEST, "two hosts"))
    assert [each.reason for each in recorder.refusals] == [Reason.BAD_REQUEST]
    assert walk.counted("bad_request")


@pytest.mark.parametrize("reason", [Reason.BACKEND_FAILED, Reason.INVALID_TENSOR, Reason.USE_STREAM])
async def test_a_backend_that_refuses_is_passed_on(reason: Reason) -> None:
    async def refuse(_: Request) -> Reply:
        raise Refused(reason, "why")

    walk = Set(refuse)
    recorder = await walk.ask()
    assert [each.reason for each in recorder.refusals] == [reason]
    assert walk.endpoint.in_flight == 0


async def test_an_unknown_model_names_itself() -> None:
    recorder = await Set(answer).ask(model="nobody")
    assert [each.reason for each in recorder.refusals] == [Reason.UNKNOWN_MODEL]
    assert "'nobody'" in recorder.refusals[0].detail


async def test_a_stuck_backend_meets_the_deadline_and_loses_its_place_in_flight() -> None:
    walk = Set(stuck)
    recorder = await walk.ask(timeout_s=0.02)
    assert [each.reason for each in recorder.refusals] == [Reason.DEADLINE]
    assert recorder.refusals[0].status == 504
    assert walk.endpoint.in_flight == 0
    assert walk.counted("deadline")


async def test_the_class_bounds_what_a_client_asks_for() -> None:
    walk = Set(answer)
    began = time.monotonic()
    recorder = await walk.ask(timeout_s=1e9, timeline=Timeline(began))
    assert recorder.answered[0].deadline == pytest.approx(began + DEFAULT.deadline_s)
    recorder = await walk.ask(timeout_s=0.5, timeline=Timeline(began))
    assert recorder.answered[0].deadline == pytest.approx(began + 0.5)


async def test_an_answer_given_after_the_deadline_is_not_sent_as_if_in_time() -> None:
    recorder = await Set(answer).ask(timeout_s=0.01, timeline=Timeline(time.monotonic() - 1.0))
    assert not recorder.replies
    assert [each.reason for each in recorder.refusals] == [Reason.DEADLINE]


async def test_a_client_that_leaves_frees_the_place_and_is_counted() -> None:
    walk = Set(stuck)
    task = asyncio.create_task(walk.ask())
    while walk.endpoint.in_flight == 0:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert walk.endpoint.in_flight == 0
    assert walk.counted("cancelled")


async def test_a_fault_of_ours_is_an_answer_too() -> None:
    async def bug(_: Request) -> Reply:
        raise ZeroDivisionError

    walk = Set(bug)
    with capture_logs() as logged:
        recorder = await walk.ask()
    assert [each.reason for each in recorder.refusals] == [Reason.INTERNAL]
    assert walk.endpoint.in_flight == 0
    assert "walk_failed" in [each["event"] for each in logged]


async def test_draining_refuses_inference_and_readiness_says_so() -> None:
    walk = Set(answer)
    walk.pipeline.draining = True
    assert [each.reason for each in (await walk.ask()).refusals] == [Reason.DRAINING]
    (ready,) = (await walk.ask(operation=Operation.READY)).replies
    (live,) = (await walk.ask(operation=Operation.LIVE)).replies
    assert (ready.status, live.status) == (503, 200)


async def test_what_is_not_inference_needs_no_place() -> None:
    walk = Set(answer)
    walk.endpoint.take(0.0)
    (metadata,) = (await walk.ask(operation=Operation.METADATA, version="2")).replies
    assert metadata.body == b'{"name":"m","version":"2"}'
    (server,) = (await walk.ask(operation=Operation.SERVER_METADATA)).replies
    assert b"binary_tensor_data" in bytes(server.body)  # type: ignore[arg-type]
    (ready,) = (await walk.ask(operation=Operation.MODEL_READY)).replies
    assert ready.status == 200
    walk.backend.ready = False
    (ready,) = (await walk.ask(operation=Operation.MODEL_READY)).replies
    assert ready.status == 503
    refused = await walk.ask(operation=Operation.METADATA)
    assert [each.reason for each in refused.refusals] == [Reason.NO_ENDPOINT]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "bad_request"), (404, "bad_request"), (429, "backend_failed"), (500, "backend_failed")],
)
async def test_a_backend_s_own_refusal_passes_through_and_is_no_success_in_the_books(status: int, reason: str) -> None:
    async def refuse(_: Request) -> Reply:
        return Reply(status=status, body=b"no")

    walk = Set(refuse)
    recorder = await walk.ask()
    assert [each.status for each in recorder.replies] == [status]
    assert walk.counted(reason)
    assert not walk.counted("ok")
