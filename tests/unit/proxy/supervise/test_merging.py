# SPDX-License-Identifier: Apache-2.0
"""Many processes as one: sums that never fall, whoever dies, hangs or begins anew."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from prometheus_client.parser import text_string_to_metric_families

from proxy.supervise.merging import Totals
from proxy.telemetry.exposition import render
from proxy.telemetry.families import Across, Exported
from proxy.telemetry.metrics import Metrics
from tests.fakes.answered import answered_request


def counter(**counts: int) -> Exported:
    return Exported("c", "C.", "counter", "sum", ("of",), [((name,), (count,)) for name, count in counts.items()])


def gauge(across: Across, value: float, of: str = "a") -> Exported:
    return Exported("g", "G.", "gauge", across, ("of",), [((of,), (value,))])


def value_of(page: list[Exported], name: str, label: str) -> float | None:
    return next((value for each in page if each.name == name for (of,), (value,) in each.samples if of == label), None)


@pytest.mark.parametrize(("across", "together"), [("sum", 4.0), ("max", 3.0), ("min", 1.0), ("mean", 2.0)])
def test_a_gauge_is_merged_by_its_own_rule(across, together):
    page = Totals().page({"1": [gauge(across, 1.0)], "2": [gauge(across, 3.0)]})
    assert value_of(page, "g", "a") == together


def test_a_gauge_is_of_those_that_answer_now():
    totals = Totals()
    totals.page({"1": [gauge("sum", 1.0)], "2": [gauge("sum", 3.0)]})
    assert value_of(totals.page({"1": [gauge("sum", 1.0)]}, {"1", "2"}), "g", "a") == 1.0


def test_the_dead_and_the_silent_stay_in_the_sum():
    totals = Totals()
    totals.page({"1": [counter(a=5)], "2": [counter(a=7)]})
    assert value_of(totals.page({"1": [counter(a=6)]}, {"1", "2"}), "c", "a") == 13  # 2 is silent
    assert value_of(totals.page({"1": [counter(a=6)]}), "c", "a") == 13  # and gone
    assert value_of(totals.page({"1": [counter(a=6)], "3": [counter(a=1)]}), "c", "a") == 14
    assert value_of(totals.page({}), "c", "a") == 14


def test_a_series_that_its_only_owner_forgot_is_forgotten():
    totals = Totals()
    totals.page({"1": [counter(a=5, b=1)]})
    assert value_of(totals.page({"1": [counter(a=5)]}), "c", "b") is None


def test_a_series_that_one_of_two_forgot_does_not_fall():
    totals = Totals()
    totals.page({"1": [counter(a=5)], "2": [counter(a=1)]})
    assert value_of(totals.page({"1": [counter()], "2": [counter(a=1)]}), "c", "a") == 6


def test_what_is_kept_of_the_dead_is_bounded():
    totals = Totals(most=10)
    for worker in range(50):
        totals.page({"0": [counter(mine=worker)], str(worker + 1): [counter(**{f"e{worker}": 1, "mine": 1})]})
    page = totals.page({"0": [counter(mine=50)]})
    assert sum(len(each.samples) for each in page) <= 11
    assert value_of(page, "c", "mine") == 100


def test_where_two_versions_say_different_things_of_a_metric_the_first_is_believed():
    other = Exported("c", "C.", "counter", "sum", ("of", "more"), [(("a", "b"), (9,))])
    page = Totals().page({"1": [counter(a=5)], "2": [other]})
    assert page == [counter(a=5)]


def test_one_worker_s_page_is_its_own():
    metrics = Metrics(version="1", clock=lambda: 5.0)
    for reason in ("ok", "deadline"):
        answered = answered_request()
        metrics.requests.finished(answered, answered.arrival.timeline.parts(), reason=reason)
    told = metrics.export()
    assert render(Totals().page({"1": told})) == render(told)


@given(st.lists(st.sampled_from(["ok", "deadline"]), max_size=5), st.integers(1, 4))
def test_the_page_of_many_is_valid_and_counts_all(reasons, workers):
    told = {}
    for worker in range(workers):
        metrics = Metrics(version="1", clock=lambda: 5.0)
        for reason in reasons:
            answered = answered_request()
            metrics.requests.finished(answered, answered.arrival.timeline.parts(), reason=reason)
        told[str(worker)] = metrics.export()
    families = list(text_string_to_metric_families(render(Totals().page(told))[0].decode()))
    assert len({each.name for each in families}) == len(families)
    found = Counter(
        {sample.labels["reason"]: int(sample.value) for each in families if each.name == "inferlane_requests"
         for sample in each.samples}
    )  # fmt: skip
    assert found == Counter(reasons * workers)
    built = next(each for each in families if each.name == "inferlane_build_info")
    assert [sample.value for sample in built.samples] == [1.0]


class Fleet(RuleBasedStateMachine):
    """Workers count, die, hang, come; whoever scrapes sees sums that never fall, and all that was scraped once."""

    def __init__(self) -> None:
        super().__init__()
        self.totals = Totals()
        self.counts: dict[int, Counter[str]] = {0: Counter()}
        self.hung: set[int] = set()
        self.born = 0
        self.scraped: Counter[str] = Counter()

    @rule(worker=st.integers(0, 5), of=st.sampled_from("abc"), more=st.integers(0, 9))
    def count(self, worker: int, of: str, more: int) -> None:
        if worker in self.counts:
            self.counts[worker][of] += more

    @rule(worker=st.integers(0, 5))
    def die(self, worker: int) -> None:
        self.counts.pop(worker, None)
        self.hung.discard(worker)

    @rule(worker=st.integers(0, 5))
    def hang_or_wake(self, worker: int) -> None:
        self.hung ^= {worker} & self.counts.keys()

    @rule()
    def come(self) -> None:
        self.born += 1
        self.counts[self.born] = Counter()

    @invariant()
    def never_falls(self) -> None:
        told = {
            str(worker): [counter(**{of: n for of, n in counts.items() if n})]
            for worker, counts in self.counts.items()
            if worker not in self.hung
        }
        page = self.totals.page(told, set(map(str, self.counts)))
        now = Counter({of: value_of(page, "c", of) or 0 for of in "abc"})
        assert all(now[of] >= self.scraped[of] for of in "abc")
        assert all(now[of] >= sum(counts[of] for w, counts in self.counts.items() if str(w) in told) for of in "abc")
        self.scraped = now


TestFleet = Fleet.TestCase
