# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from backends.asking.attempt import Attempt, Copy
from backends.asking.attempts import AttemptCounts, Attempts
from backends.asking.hedge import Race
from backends.body import Body
from backends.messages import Reply, Request
from backends.outcome import Ending
from inferlane.errors import Reason, Refused
from qos.budget import Budget
from tests.fakes.asked import Answer, AskedEndpoint, AskedPlace, AskedPool, FakePieces
from tests.fakes.endpoints import request_for, traffic_class

GOOD = Reply(body=b"good")
BETTER = Reply(body=b"better")
FAILED = Refused(Reason.BACKEND_FAILED, "the connection broke")
RESERVE = 30
"""Hedges that the budget pays for before the share of the requests counts."""


class Scene:
    """Two endpoints, and a class whose answers have all taken less than a millisecond, so that hedges come at once."""

    def __init__(self, first: Answer, second: Answer, *, most_retries: int = 0) -> None:
        self.first, self.second = AskedEndpoint("a", first), AskedEndpoint("b", second)
        self.pool = AskedPool(self.first, self.second)
        self.now = 100.0
        self.attempts = Attempts(
            self.pool, self.pool, retry=Budget(0.2), most_retries=most_retries, clock=lambda: self.now
        )
        for _ in range(100):
            self.pool.known.observe(1e-4, self.now)

    def request(self, *, hedge: float = 0.05, streaming: bool = False, body: Body | None = None) -> Request:
        of = replace(traffic_class(deadline_s=10.0), hedge=hedge)
        request = request_for(of, now=self.now, body=body or Body.of(b"question"))
        return replace(request, streaming=streaming)

    def begin(self, request: Request | None = None) -> asyncio.Task[Attempt]:
        return asyncio.create_task(self.attempts.infer(request or self.request()))

    @property
    def counts(self) -> AttemptCounts:
        return self.attempts.counts


async def until(*endpoints: AskedEndpoint) -> None:
    """Until they wait for their answers."""
    while not all(each.waits for each in endpoints):
        await asyncio.sleep(0.0005)


async def settled() -> None:
    """Until losers have cleaned up behind the winner's back."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_slow_answer_is_asked_for_a_second_time_and_the_first_good_one_wins():
    scene = Scene(None, GOOD)
    request = scene.request()
    scene.second.stamps = 100.75
    attempt = await scene.begin(request)
    assert (attempt.reply, attempt.endpoint, attempt.count, attempt.hedged) == (GOOD, "b", 2, True)
    assert request.timeline.first_byte == 100.75
    await settled()
    assert scene.first.cancelled == 1
    assert scene.first.endings == [Ending.CANCELLED]
    assert scene.second.outcomes == []
    attempt.leave()
    assert scene.second.endings == [Ending.ANSWERED]
    assert scene.counts == AttemptCounts(hedges=1, hedges_won=1)
    assert scene.first.bodies == scene.second.bodies == [b"question"]


async def test_the_first_may_still_win():
    scene = Scene(None, None)
    asking = scene.begin()
    await until(scene.first, scene.second)
    scene.first.release(BETTER)
    attempt = await asking
    assert (attempt.reply, attempt.endpoint) == (BETTER, "a")
    attempt.leave()
    await settled()
    assert (scene.first.endings, scene.second.endings) == ([Ending.ANSWERED], [Ending.CANCELLED])
    assert scene.counts == AttemptCounts(hedges=1)


async def test_a_quick_answer_is_asked_for_once():
    scene = Scene(GOOD, BETTER)
    attempt = await scene.begin()
    assert (attempt.reply, attempt.hedged) == (GOOD, False)
    attempt.leave()
    assert scene.second.requests == []


async def test_a_losers_failure_does_not_fail_the_request():
    scene = Scene(None, None)
    asking = scene.begin()
    await until(scene.first, scene.second)
    scene.first.release(FAILED)
    await settled()
    assert not asking.done()
    assert scene.first.endings == [Ending.FAILED]
    scene.second.release(GOOD)
    assert (await asking).reply is GOOD
    assert scene.counts.hedges_won == 1


async def test_the_last_failure_is_the_answer_when_both_fail():
    scene = Scene(None, None)
    asking = scene.begin()
    await until(scene.first, scene.second)
    scene.second.release(Refused(Reason.BACKEND_FAILED, "the other one"))
    await settled()
    scene.first.release(FAILED)
    with pytest.raises(Refused) as caught:
        await asking
    assert caught.value is FAILED
    assert scene.pool.held == 0
    assert scene.counts == AttemptCounts(hedges=1)


async def test_a_refusal_that_is_the_requests_own_fault_is_an_answer():
    scene = Scene(None, None)
    asking = scene.begin()
    await until(scene.first, scene.second)
    scene.second.release(Refused(Reason.BAD_REQUEST))
    with pytest.raises(Refused, match="bad_request"):
        await asking
    await settled()
    assert scene.pool.held == 0
    assert scene.first.endings == [Ending.CANCELLED]


async def test_a_failure_before_the_hedge_is_a_matter_of_retries():
    scene = Scene(FAILED, GOOD, most_retries=1)
    attempt = await scene.begin()
    assert (attempt.reply, attempt.hedged, attempt.count) == (GOOD, False, 2)
    assert scene.counts == AttemptCounts(retries=1)


async def test_a_fault_of_ours_in_the_loser_is_logged_and_not_lost(capsys):
    scene = Scene(None, None)
    asking = scene.begin()
    await until(scene.first, scene.second)
    scene.first.release(ValueError("a bug"))
    await settled()
    scene.second.release(GOOD)
    assert (await asking).reply is GOOD
    out = capsys.readouterr()
    assert "hedge_failed" in out.out + out.err


@pytest.mark.parametrize(
    "why",
    ["class", "streaming", "long", "unknown", "no place", "budget"],
)
async def test_there_is_no_hedge_where(why):
    scene = Scene(None, GOOD)
    request = scene.request()
    if why == "class":
        request = scene.request(hedge=0.0)
    elif why == "streaming":
        request = scene.request(streaming=True)
    elif why == "long":
        request = scene.request(body=Body.of(bytes(300_000)))
    elif why == "unknown":
        scene.now += 100.0  # what was observed has faded
    elif why == "no place":
        scene.pool.sparing = False
    elif why == "budget":
        request = scene.request(hedge=0.02)  # the reserve's requests earn less than one hedge
        for _ in range(RESERVE):
            (await scene.begin(scene.request(hedge=0.02))).leave()
            await settled()
    asking = scene.begin(request)
    await until(scene.first)
    await asyncio.sleep(0.02)
    asked = len(scene.second.requests)
    scene.first.release(BETTER)
    attempt = await asking
    assert attempt.reply is BETTER
    assert asked == scene.counts.hedges == (RESERVE if why == "budget" else 0)


async def test_hedges_stay_within_their_share_however_slow_everything_is():
    scene = Scene(None, GOOD)
    for _ in range(100):
        asking = scene.begin()
        await until(scene.first)
        await asyncio.sleep(0.003)
        if not asking.done():
            scene.first.release(BETTER)
        (await asking).leave()
        await settled()
    assert RESERVE <= scene.counts.hedges <= 0.05 * 100 + RESERVE
    assert scene.pool.held == 0


async def test_a_client_that_leaves_cancels_both():
    scene = Scene(None, None)
    asking = scene.begin()
    await until(scene.first, scene.second)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await settled()
    assert (scene.first.endings, scene.second.endings) == ([Ending.CANCELLED], [Ending.CANCELLED])
    assert (scene.first.cancelled, scene.second.cancelled) == (1, 1)


async def test_an_overtaken_first_copy_is_counted_as_slow_as_it_was_seen_to_be():
    scene = Scene(None, None)
    before = scene.pool.known.count(scene.now)
    asking = scene.begin()
    await until(scene.first, scene.second)
    scene.now += 0.05
    scene.second.release(GOOD)
    (await asking).leave()
    await settled()
    assert scene.pool.known.count(scene.now) > before + 0.5
    assert scene.pool.known.quantile(1.0, scene.now + 0.1) == pytest.approx(0.05, rel=0.05)


async def test_a_loser_that_answers_in_the_last_moment_is_closed_and_its_place_left():
    pieces = FakePieces(b"late")
    lost: list[Copy] = []
    endpoints = [AskedEndpoint("a", GOOD), AskedEndpoint("b", Reply(body=pieces))]
    copies = [Copy(AskedPlace(each), request_for(traffic_class(), now=0.0), lambda: 0.0) for each in endpoints]
    async with Race(lost.append) as race:
        race.start(copies[0])
        race.start(copies[1])
        assert repr(race) == "<Race of 2 running>"
        await asyncio.sleep(0.001)
        assert await race.winner() is copies[0]
    await settled()
    assert lost == [copies[1]]
    assert endpoints[1].endings == [Ending.ANSWERED]
    assert pieces.closed == 1


async def test_a_copy_that_is_cancelled_before_it_began_leaves_its_place_too():
    endpoint = AskedEndpoint("a", GOOD)
    lost: list[Copy] = []
    async with Race(lost.append) as race:
        race.start(Copy(AskedPlace(endpoint), request_for(traffic_class(), now=0.0), lambda: 0.0))
    await settled()
    assert endpoint.endings == [Ending.CANCELLED]
    assert endpoint.requests == []
