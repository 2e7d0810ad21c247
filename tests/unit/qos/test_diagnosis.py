# SPDX-License-Identifier: Apache-2.0
"""Requests go by, and somebody asks how the promises stand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason
from qos.diagnosis import KEPT_SHARE, WINDOW_S, Diagnosis, quantiles, report
from qos.promise import HURRIED, LATE, MISSED, REFUSED, Part, Promise
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

REALTIME = TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=0.05, queue_s=0.02)
BATCH = TrafficClass(name="batch", rank=1, dscp=10, deadline_s=30.0, queue_s=30.0)


@dataclass
class Over:
    """A finished request, as the diagnosis sees it."""

    traffic_class: TrafficClass
    pool: str
    deadline: float
    streaming: bool = False


class Site:
    """A diagnosis, and requests whose parts are given in milliseconds."""

    def __init__(self) -> None:
        self.diagnosis = Diagnosis()
        self.now = 1000.0

    def answers(self, *, queue: float = 0.2, compute: float = 8.0, download: float = 0.1, **told: object) -> None:
        start = self.now
        queued = start + 0.1e-3
        dispatched = queued + queue * 1e-3
        first_byte = dispatched + (compute + 0.5) * 1e-3
        timeline = Timeline(start, queued, dispatched, first_byte, first_byte + download * 1e-3, 0.001, compute * 1e-3)
        self.ends(timeline, **told)

    def refuses(self, reason: str, *, after: float, **told: object) -> None:
        """In the gate, so many milliseconds after it came."""
        queued = self.now + 0.1e-3
        self.ends(Timeline(self.now, queued, finished=queued + after * 1e-3, rtt_s=0.001), reason, **told)

    def hangs(self, *, after: float) -> None:
        """At the backend, until the deadline."""
        dispatched = self.now + 0.3e-3
        timeline = Timeline(self.now, self.now + 0.1e-3, dispatched, finished=dispatched + after * 1e-3, rtt_s=0.001)
        self.ends(timeline, "deadline")

    def ends(
        self,
        timeline: Timeline,
        reason: str = "ok",
        *,
        of: TrafficClass = REALTIME,
        pool: str = "magika",
        budget_s: float | None = None,
        streaming: bool = False,
    ) -> None:
        deadline = timeline.received + (of.deadline_s if budget_s is None else budget_s)
        self.diagnosis.observe(Over(of, pool, deadline, streaming), timeline, reason)
        self.now += 0.01

    def promises(self) -> list[Promise]:
        return list(self.diagnosis.promises(self.now))

    def promise(self) -> Promise:
        (only,) = self.promises()
        return only


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_promise_that_is_kept_says_where_the_time_went(site):
    for _ in range(200):
        site.answers()
    promise = site.promise()
    assert (promise.traffic_class, promise.pool, promise.deadline_s) == ("realtime", "magika", 0.05)
    assert (promise.kept, promise.missed, promise.refused, promise.holds) == (200, 0, 0, True)
    medians = {part: spent.median_s for part, spent in promise.parts.items()}
    assert medians == pytest.approx(
        {
            Part.NETWORK: 0.001,
            Part.UPLOAD: 0.0001,
            Part.QUEUE: 0.0002,
            Part.BACKEND: 0.0005,
            Part.COMPUTE: 0.008,
            Part.DOWNLOAD: 0.0001,
        }
    )
    assert promise.parts[Part.COMPUTE].share == pytest.approx(8 / 9.9)
    assert promise.whole is not None
    assert promise.whole.median_s == pytest.approx(0.0089)
    assert promise.breaches == []


def test_the_gate_breaks_the_promise_of_those_that_waited_there(site):
    for turn in range(100):
        site.answers()
        if turn % 10 == 0:
            site.refuses("deadline", after=49.9)
    promise = site.promise()
    assert (promise.kept, promise.missed, promise.holds) == (100, 10, False)
    (breach,) = promise.breaches
    assert (breach.part, breach.share) == (Part.QUEUE, 1.0)
    assert breach.median_s == pytest.approx(0.0499)
    assert breach.usual_s == pytest.approx(0.0002)
    assert "pools[magika].endpoints" in promise.words[1]


def test_a_hung_backend_is_not_put_down_to_the_gate(site):
    for _ in range(20):
        site.answers(queue=15)
    site.hangs(after=49.7)
    assert [each.part for each in site.promise().breaches] == [Part.BACKEND]


def test_several_parts_are_told_most_first(site):
    for _ in range(30):
        site.answers()
    for _ in range(3):
        site.refuses("deadline", after=49.9)
    site.hangs(after=49.7)
    assert [(each.part, each.share) for each in site.promise().breaches] == [(Part.QUEUE, 0.75), (Part.BACKEND, 0.25)]


def test_a_promise_shorter_than_the_usual_is_broken_by_what_takes_longest(site):
    for _ in range(20):
        site.answers(compute=49, queue=0.1)
        site.refuses("deadline", after=49.9)
    assert [each.part for each in site.promise().breaches] == [Part.QUEUE]
    site = Site()
    for _ in range(20):
        site.answers(compute=48.8, queue=0.1, download=0.1)
        site.answers(compute=52, queue=1)
    assert [each.part for each in site.promise().breaches] == [Part.COMPUTE]


def test_who_was_turned_away_had_the_usual_still_before_it(site):
    """Refused at once because the model takes longer than the deadline: the gate made nobody wait."""
    for _ in range(5):
        site.hangs(after=49.7)
    for _ in range(50):
        site.refuses("too_late", after=0.01)
    assert [each.part for each in site.promise().breaches] == [Part.BACKEND]


def test_an_answer_after_the_deadline_is_no_kept_promise(site):
    site.answers(compute=60)
    promise = site.promise()
    assert (promise.kept, promise.missed) == (0, 1)
    assert [(each.reason, each.count) for each in promise.refusals] == [(LATE, 1)]


def test_a_token_stream_keeps_its_promise_with_its_first_byte(site):
    site.answers(download=20_000, streaming=True)
    site.answers(compute=60, streaming=True)
    promise = site.promise()
    assert (promise.kept, promise.missed) == (1, 1)
    assert Part.DOWNLOAD not in promise.parts


def test_a_client_in_a_hurry_breaks_no_promise_of_ours(site):
    for _ in range(10):
        site.answers()
        site.refuses("deadline", after=5, budget_s=0.005)
    promise = site.promise()
    assert (promise.kept, promise.missed, promise.holds) == (10, 0, True)
    assert [(each.reason, each.place, each.count) for each in promise.refusals] == [(HURRIED, "client", 10)]
    assert "raise the client's timeout" in promise.words[1]


def test_a_client_that_says_what_is_left_of_the_class_s_own_time_is_in_no_hurry(site):
    site.refuses("deadline", after=48, budget_s=0.048)
    assert site.promise().missed == 1


def test_refusals_are_counted_by_who_said_no(site):
    for reason, count in (("queue_full", 3), ("backend_failed", 2), ("bad_request", 5), ("queue_timeout", 1)):
        for _ in range(count):
            site.refuses(reason, after=1)
    promise = site.promise()
    told = {each.reason: (each.place, each.count) for each in promise.refusals}
    assert told == {
        "bad_request": ("client", 5),
        "queue_full": ("gate", 3),
        "backend_failed": ("endpoint", 2),
        "queue_timeout": ("gate", 1),
    }
    assert (promise.kept, promise.missed, promise.refused) == (0, 1, 5)


def test_one_in_a_thousand_may_be_missed(site):
    for _ in range(1998):
        site.answers()
    site.refuses("deadline", after=49.9)
    assert site.promise().holds
    site.refuses("deadline", after=49.9)
    assert site.promise().holds
    site.refuses("deadline", after=49.9)
    assert not site.promise().holds


def test_classes_and_pools_are_apart_and_in_order(site):
    site.answers(of=BATCH, pool="a")
    site.answers(pool="b")
    site.refuses("queue_full", after=0, pool="a")
    site.refuses("unknown_model", after=0, pool="")
    told = report(site.promises())
    assert [(each.traffic_class, each.pool, each.holds) for each in told.promises] == [
        ("realtime", "", True),
        ("realtime", "a", False),
        ("realtime", "b", True),
        ("batch", "a", True),
    ]
    assert not told.holds
    assert report([]).holds


def test_what_is_long_past_is_forgotten(site):
    site.refuses("deadline", after=49.9)
    site.now += WINDOW_S / 2
    site.answers()
    assert (site.promise().missed, site.promise().kept) == (1, 1)
    site.now += WINDOW_S / 2 + 35
    assert (site.promise().missed, site.promise().kept) == (0, 1)
    site.now += WINDOW_S
    assert site.promises() == []


def test_a_reload_gives_the_promise_its_new_deadline(site):
    site.answers()
    site.answers(of=TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=0.2, queue_s=0.1))
    assert site.promise().deadline_s == 0.2


def test_many_requests_are_counted_each_and_sampled_evenly(site):
    site.now = 0.0
    for turn in range(20_000):
        site.now = turn / 1000
        site.answers(queue=turn / 1000)
    promise = site.promise()
    assert promise.kept == 20_000
    assert promise.parts[Part.QUEUE].median_s == pytest.approx(0.010, rel=0.05)
    assert promise.parts[Part.QUEUE].p99_s == pytest.approx(0.0198, rel=0.05)


def test_a_busy_half_minute_weighs_as_much_as_its_requests(site):
    for turn in range(3000):
        site.now = 1000 + turn / 1000
        site.answers(queue=30)
    site.now += 60
    for _ in range(10):
        site.answers(queue=1)
    assert site.promise().parts[Part.QUEUE].median_s == pytest.approx(0.030)


def test_its_size_is_bounded_by_classes_and_pools(site):
    for turn in range(5000):
        site.now = turn * 1.0
        site.answers()
    (watch,) = site.diagnosis._watches.values()
    assert len(watch.slices) <= 11
    assert all(len(each.kept.samples) <= 64 for each in watch.slices)
    assert "1 promises" in repr(site.diagnosis)


reasons = st.sampled_from(["ok", *(each.label for each in Reason)])


@given(
    st.lists(
        st.tuples(
            reasons,
            st.floats(-5, 400),  # clocks that go back, too
            st.lists(st.one_of(st.none(), st.floats(0, 100)), min_size=3, max_size=3),
            st.floats(0, 100),
            st.floats(0.0001, 100),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_happens_everybody_is_counted_once(ends):
    diagnosis, now = Diagnosis(), 1000.0
    for reason, step, stamps, end, budget_s, streaming in ends:
        now += step
        timeline = Timeline(now, *(None if each is None else now + each for each in stamps), finished=now + end)
        diagnosis.observe(Over(REALTIME, "p", now + budget_s, streaming), timeline, reason)
    slices = [each for watch in diagnosis._watches.values() for each in watch.slices]
    ours = sum(each.kept.count for each in slices) + sum(sum(each.reasons.values()) for each in slices)
    assert ours <= len(ends)  # less what fell out of the window
    for promise in diagnosis.promises(now):
        assert promise.missed == sum(each.count for each in promise.refusals if each.reason in MISSED)
        assert promise.refused == sum(each.count for each in promise.refusals if each.reason in REFUSED)
        broken, asked = promise.missed + promise.refused, promise.kept + promise.missed + promise.refused
        assert promise.holds == (broken <= (1 - KEPT_SHARE) * asked)
        assert sum(each.share for each in promise.breaches) == pytest.approx(1.0 if promise.missed else 0.0)
        assert sum(each.share for each in promise.parts.values()) in (pytest.approx(1.0), 0.0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 9)), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_and_splits_the_weight(values, q):
    (found,) = quantiles(values, q)
    whole = sum(weight for _, weight in values)
    assert found in {value for value, _ in values}
    assert sum(weight for value, weight in values if value <= found) >= q * whole - 1e-9 * whole
    assert sum(weight for value, weight in values if value < found) <= q * whole + 1e-9 * whole
