# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from backends.asking.attempt import Attempt
from backends.asking.attempts import REPEATABLE, AttemptCounts, Attempts
from backends.body import Body
from backends.messages import Reply, Request
from backends.outcome import Ending
from inferlane.errors import Reason, Refused
from qos.budget import Budget
from tests.fakes.asked import Answer, AskedEndpoint, AskedPool, FakePieces
from tests.fakes.endpoints import request_for, traffic_class

GOOD = Reply(body=b"good")
FAILED = Refused(Reason.BACKEND_FAILED, "the connection broke")
UNAVAILABLE = Reply(status=503, body=b"not now", fields=((b"retry-after", b"7"),))


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """Attempts at endpoints a, b, ...: one for each list of answers."""

    def __init__(self, *answers: Answer | list[Answer], budget: Budget | None = None, most_retries: int = 2) -> None:
        self.endpoints = [
            AskedEndpoint(name, *(each if isinstance(each, list) else [each]))
            for name, each in zip("abcdef", answers, strict=False)
        ]
        self.pool = AskedPool(*self.endpoints)
        self.clock = Clock()
        self.attempts = Attempts(
            self.pool, self.pool, retry=budget or Budget(0.2), most_retries=most_retries, clock=self.clock
        )

    async def infer(self, request: Request | None = None) -> Attempt:
        return await self.attempts.infer(request or self.request())

    def request(self, body: Body | None = None, hedge: float = 0.0) -> Request:
        of = replace(traffic_class(deadline_s=10.0), hedge=hedge)
        return request_for(of, now=self.clock.now, body=body or Body.of(b"question"))

    @property
    def asked(self) -> str:
        """How often each was asked."""
        return " ".join(f"{each.name}{len(each.requests)}" for each in self.endpoints)


async def test_a_good_answer_holds_its_place_until_the_caller_has_handed_it_on():
    scene = Scene(GOOD, GOOD)
    request = scene.request()
    attempt = await scene.infer(request)
    assert (attempt.reply, attempt.endpoint, attempt.count, attempt.hedged) == (GOOD, "a", 1, False)
    assert request.timeline.dispatched == request.timeline.first_byte == 100.0
    assert scene.pool.held == 1
    scene.clock.now += 2.0
    attempt.leave()
    attempt.leave()  # as a caller's `finally` may
    assert scene.pool.held == 0
    (outcome,) = scene.endpoints[0].outcomes
    assert (outcome.ending, outcome.latency_s, outcome.held_s) == (Ending.ANSWERED, 0.0, 2.0)


async def test_the_backends_own_stamp_of_the_first_byte_goes_before_ours():
    scene = Scene(GOOD)
    scene.endpoints[0].stamps = 99.5
    request = scene.request()
    (await scene.infer(request)).leave()
    assert request.timeline.first_byte == 99.5


@pytest.mark.parametrize("failure", [FAILED, UNAVAILABLE, Reply(status=500, body=b""), Reply(status=429, body=b"")])
async def test_what_an_endpoint_fails_is_tried_at_another_with_the_same_body(failure):
    scene = Scene(failure, GOOD)
    request = scene.request()
    attempt = await scene.infer(request)
    assert (attempt.reply, attempt.endpoint, attempt.count) == (GOOD, "b", 2)
    assert scene.endpoints[0].endings == [Ending.FAILED]
    assert scene.endpoints[0].in_flight == 0
    assert [each.bodies for each in scene.endpoints] == [[b"question"], [b"question"]]
    assert scene.attempts.counts == AttemptCounts(retries=1)


async def test_what_an_endpoint_asks_for_reaches_its_record():
    scene = Scene(UNAVAILABLE, GOOD)
    await scene.infer()
    assert scene.endpoints[0].outcomes[0].retry_after_s == 7.0


@pytest.mark.parametrize(
    "answer",
    [
        Reply(status=400, body=b""),
        Reply(status=404, body=b""),
        Reply(status=501, body=b""),
        Refused(Reason.DEADLINE),
        Refused(Reason.TOO_LARGE),
        ValueError("a bug"),
    ],
)
async def test_what_is_not_the_endpoints_fault_is_not_repeated(answer):
    scene = Scene(answer, GOOD)
    if isinstance(answer, Reply):
        (attempt := await scene.infer()).leave()
        assert attempt.reply is answer
    else:
        with pytest.raises(type(answer)) as caught:
            await scene.infer()
        assert caught.value is answer
    assert scene.asked == "a1 b0"
    assert scene.pool.held == 0


async def test_the_last_answer_is_the_clients_when_all_fail():
    last = Reply(status=502, body=b"the third")
    scene = Scene(FAILED, UNAVAILABLE, last, GOOD)
    attempt = await scene.infer()
    assert (attempt.reply, attempt.count) == (last, 3)
    attempt.leave()
    assert scene.asked == "a1 b1 c1 d0"  # two retries at most
    assert [each.endings for each in scene.endpoints] == [[Ending.FAILED]] * 3 + [[]]


async def test_and_so_is_the_last_error():
    scene = Scene(UNAVAILABLE, FAILED)
    with pytest.raises(Refused) as caught:
        await scene.infer()
    assert caught.value is FAILED
    assert scene.pool.held == 0
    assert scene.asked == "a1 b1"


async def test_with_one_endpoint_there_is_nobody_else_to_ask():
    scene = Scene(UNAVAILABLE)
    attempt = await scene.infer()
    assert attempt.reply is UNAVAILABLE
    attempt.leave()
    assert scene.asked == "a1"
    assert scene.attempts.counts == AttemptCounts()


async def test_nor_is_one_that_is_ejected_or_drained_anybody():
    scene = Scene(UNAVAILABLE, GOOD)
    scene.endpoints[1].admitted = False
    (await scene.infer()).leave()
    assert scene.asked == "a1 b0"
    assert scene.endpoints[0].endings == [Ending.FAILED]


async def test_an_endpoint_that_failed_is_not_asked_again_when_nobody_else_has_a_place():
    scene = Scene(UNAVAILABLE, GOOD)
    scene.endpoints[1].slots = 0
    attempt = await scene.infer()
    assert attempt.reply is UNAVAILABLE
    attempt.leave()  # its place is free already
    assert scene.endpoints[0].endings == [Ending.FAILED, Ending.BLAMELESS]
    assert scene.asked == "a1 b0"
    assert scene.attempts.counts == AttemptCounts()


async def test_what_failed_is_told_rather_than_that_no_place_was_left_to_try_again():
    scene = Scene(None, GOOD)
    scene.endpoints[1].slots = 0
    asking = asyncio.create_task(scene.infer())
    await asked(scene.endpoints[0])
    scene.endpoints[0].slots = 0
    scene.endpoints[0].release(FAILED)
    with pytest.raises(Refused) as caught:
        await asking
    assert caught.value is FAILED


async def test_a_failed_reply_in_pieces_is_closed_before_another_is_asked():
    pieces = FakePieces(b"long")
    scene = Scene(Reply(status=503, body=pieces), GOOD)
    assert (await scene.infer()).reply is GOOD
    assert pieces.closed == 1


async def test_it_cannot_be_handed_on_any_more_when_nobody_else_has_a_place():
    pieces = FakePieces(b"long")
    scene = Scene(Reply(status=503, body=pieces, fields=UNAVAILABLE.fields), GOOD)
    scene.endpoints[1].slots = 0
    with pytest.raises(Refused, match="endpoint a answered with status 503, and no other had a place") as caught:
        await scene.infer()
    assert (caught.value.reason, caught.value.retry_after_s) == (Reason.BACKEND_FAILED, 7.0)
    assert scene.pool.held == 0


async def test_no_second_attempt_after_the_deadline():
    scene = Scene(None, GOOD)
    asking = asyncio.create_task(scene.infer())
    await asked(scene.endpoints[0])
    scene.clock.now += 10.0
    scene.endpoints[0].release(FAILED)
    with pytest.raises(Refused):
        await asking
    assert scene.asked == "a1 b0"


@pytest.mark.parametrize("ended", [True, False])
async def test_a_body_that_is_long_or_not_whole_is_sent_once(ended):
    body = Body(limit=1 << 20)
    body.feed(bytes(REPEATABLE + 1) if ended else b"begin", ended=ended)
    scene = Scene(FAILED, GOOD)
    asking = asyncio.create_task(scene.infer(scene.request(body)))
    while not scene.endpoints[0].requests:
        await asyncio.sleep(0)
    assert scene.endpoints[0].requests[0].body is body
    if not ended:
        body.feed(b"end", ended=True)
    with pytest.raises(Refused):
        await asking
    assert scene.asked == "a1 b0"


@pytest.mark.parametrize("endpoints", [1, 2])
async def test_a_body_that_nobody_needs_twice_is_not_touched(endpoints):
    scene = Scene(*[GOOD] * endpoints, most_retries=0)
    request = scene.request()
    body = request.body
    (await scene.infer(request)).leave()
    assert request.body is body


async def test_a_storm_of_failures_makes_no_storm_of_retries():
    scene = Scene([FAILED], [FAILED], budget=Budget(0.2, reserve=10))
    for _ in range(1000):
        with pytest.raises(Refused):
            await scene.infer()
    counts = scene.attempts.counts
    assert 190 <= counts.retries <= 210
    assert counts.retries + counts.retries_denied == 1000
    assert sum(len(each.requests) for each in scene.endpoints) == 1000 + counts.retries


async def test_the_record_of_a_request_that_fails_names_who_was_asked():
    scene = Scene(FAILED, FAILED)
    names: list[str] = []
    with pytest.raises(Refused):
        await scene.attempts.infer(scene.request(), asking=names.append)
    assert names == ["a", "b"]


async def test_what_the_gate_refuses_reaches_the_client_as_it_is():
    scene = Scene(GOOD)
    scene.endpoints[0].slots = 0
    with pytest.raises(Refused, match="no place"):
        await scene.infer()


async def test_and_pays_for_no_second_attempt_of_others():
    budget = Budget(0.2, reserve=1)
    budget.spend()
    scene = Scene(GOOD, GOOD, budget=budget)
    scene.endpoints[0].slots = scene.endpoints[1].slots = 0
    for _ in range(10):
        with pytest.raises(Refused):
            await scene.infer()
    assert not budget.allows


async def test_a_client_that_leaves_frees_the_place_and_cancels_the_backend():
    scene = Scene(None, None)
    asking = asyncio.create_task(scene.infer())
    await asked(scene.endpoints[0])
    scene.clock.now += 3.0
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (outcome,) = scene.endpoints[0].outcomes
    assert (outcome.ending, outcome.latency_s) == (Ending.CANCELLED, 3.0)
    assert scene.endpoints[0].cancelled == 1


async def test_a_deadline_that_strikes_is_told_as_what_it_is():
    scene = Scene(None)
    asking = asyncio.create_task(scene.infer())
    await asked(scene.endpoints[0])
    scene.clock.now += 10.0
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert scene.endpoints[0].endings == [Ending.TIMED_OUT]


async def test_a_reply_that_holds_its_place_is_learnt_from_when_it_begins():
    stream = Reply(body=FakePieces(b"token"), streaming=True)
    scene = Scene([stream, GOOD], GOOD)
    scene.endpoints[0].stamps = 100.25
    attempt = await scene.infer()
    assert scene.pool.begun == [("a", 0.25, "rank-0")]
    attempt.leave()
    assert scene.endpoints[0].endings == [Ending.ANSWERED]
    (await scene.infer()).leave()
    assert scene.pool.begun == [("a", 0.25, "rank-0")]  # a whole reply is learnt from at its end


def test_its_repr_tells_its_condition():
    assert repr(Scene(GOOD).attempts).startswith("<Attempts, at most 2 retries, <Budget 10.0 of 10 left, 20%")


async def asked(endpoint: AskedEndpoint) -> None:
    """Until it waits for an answer."""
    while not endpoint.waits:
        await asyncio.sleep(0)


async def test_whatever_happens_every_place_is_left_once():
    rng = random.Random(4)
    answers: list[Answer] = [GOOD, FAILED, UNAVAILABLE, None, Reply(status=400, body=b"")]
    for _ in range(300):
        scene = Scene(*[[rng.choice(answers) for _ in range(5)] for _ in range(rng.randint(1, 4))])
        for each in scene.endpoints:
            each.slots = rng.randint(1, 3)
        for _ in range(40):
            scene.pool.known.observe(0.001, scene.clock.now)
        asking = [
            asyncio.create_task(scene.infer(scene.request(hedge=rng.choice((0.0, 0.5)))))
            for _ in range(rng.randint(1, 6))
        ]
        for _ in range(rng.randint(0, 12)):
            await asyncio.sleep(rng.choice((0, 0, 0, 0.0012)))
            rng.choice(asking).cancel() if rng.random() < 0.3 else None
            waiting = [each for each in scene.endpoints if each.waits]
            if waiting:
                rng.choice(waiting).release(rng.choice((GOOD, FAILED)))
        for each in asking:
            each.cancel()
        for result in await asyncio.gather(*asking, return_exceptions=True):
            if isinstance(result, Attempt):
                result.leave()
        for _ in range(3):  # losers clean up behind the winner's back
            await asyncio.sleep(0)
        assert scene.pool.held == 0
        assert sum(len(each.outcomes) for each in scene.endpoints) >= sum(
            len(each.requests) for each in scene.endpoints
        )
