# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.limit import AdaptiveLimit, FixedLimit

Service = Callable[[random.Random], float]
SERVICES: dict[str, Service] = {
    "always the same": lambda rng: 0.05,
    "normal": lambda rng: max(0.005, rng.gauss(0.05, 0.015)),
    "exponential": lambda rng: rng.expovariate(20.0),
    "p90 50 ms, p99 150 ms": lambda rng: rng.lognormvariate(-4.343, 1.052),
}


class Server:
    """A queue before workers, and in front of it a gate that is never empty, or gets `rate` requests a second."""

    def __init__(self, limit: AdaptiveLimit, service: Service, *, workers: int = 8, rate: float | None = None) -> None:
        self.limit = limit
        self.workers = workers
        self.slower = 1.0
        self.down = False
        self.now = 0.0
        self.limits: list[int] = []
        self.answered = 0
        self._rng = random.Random(7)
        self._service = service
        self._rate = rate
        self._waiting = 0
        self._events: list[tuple[float, int, str, tuple[float, int]]] = []
        self._made = 0
        self._queue: deque[tuple[float, int]] = deque()
        self._busy = self._in_flight = 0
        if rate is not None:
            self._at(0.0, "arrival")

    def run(self, seconds: float) -> list[int]:
        """The limits of these seconds, every tenth of one."""
        until, sampled, self.limits, self.answered = self.now + seconds, self.now, [], 0
        self._dispatch()
        while self._events and self._events[0][0] <= until:
            self.now, _, kind, asked = heapq.heappop(self._events)
            while sampled < self.now:
                self.limits.append(self.limit.limit)
                sampled += 0.1
            self._happen(kind, asked)
            self._dispatch()
        self.now = until
        return self.limits

    def _happen(self, kind: str, asked: tuple[float, int]) -> None:
        if kind == "arrival":
            assert self._rate is not None
            self._waiting += 1
            self._at(self._rng.expovariate(self._rate), "arrival")
            return
        self._in_flight -= 1
        self._busy -= kind == "done"
        if self.down or kind == "failed":
            self.limit.failed(self.now)
            return
        self.answered += 1
        self.limit.finished(self.now - asked[0], asked[1], self.now)

    def _dispatch(self) -> None:
        while self._in_flight < self.limit.limit and (self._rate is None or self._waiting):
            self._waiting -= self._rate is not None
            self._in_flight += 1
            asked = (self.now, self._in_flight)
            if self.down:
                self._at(0.01, "failed", asked)
            else:
                self._queue.append(asked)
        while self._queue and self._busy < self.workers:
            self._busy += 1
            self._at(self._service(self._rng) * self.slower, "done", self._queue.popleft())

    def _at(self, delay: float, kind: str, asked: tuple[float, int] = (0.0, 0)) -> None:
        self._made += 1
        heapq.heappush(self._events, (self.now + delay, self._made, kind, asked))


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_it_settles_near_the_number_of_workers_and_stays_though_always_congested(service):
    server = Server(AdaptiveLimit(1, 256), service)
    server.run(40.0)
    for _ in range(3):
        assert 6.4 <= mean(server.run(40.0)) <= 9.6


def test_what_it_costs_to_ask_is_little():
    server = Server(AdaptiveLimit(1, 256), SERVICES["normal"])
    server.run(20.0)
    server.run(40.0)
    assert server.answered >= 0.95 * 40.0 * 160


@pytest.mark.parametrize("service", [SERVICES["always the same"], SERVICES["normal"]])
def test_it_is_back_soon_after_an_outage_of_30_seconds(service):
    server = Server(AdaptiveLimit(1, 256), service)
    before = mean(server.run(60.0)[300:])
    server.down = True
    assert server.run(30.0)[-1] == 2
    server.down = False
    server.run(5.0)
    assert mean(server.run(15.0)) == pytest.approx(before, rel=0.2)


def test_it_follows_an_endpoint_that_loses_and_gets_back_most_of_its_workers():
    server = Server(AdaptiveLimit(1, 256), SERVICES["normal"], workers=64)
    assert 51 <= mean(server.run(60.0)[300:]) <= 77
    server.workers = 8
    assert 6.4 <= mean(server.run(60.0)[400:]) <= 9.6
    server.workers = 64
    assert 51 <= mean(server.run(60.0)[400:]) <= 77


def test_it_does_not_choke_when_the_service_itself_becomes_slower():
    server = Server(AdaptiveLimit(1, 256), SERVICES["normal"])
    server.run(40.0)
    server.slower = 4.0
    assert min(server.run(60.0)) >= 5
    assert 6.4 <= mean(server.limits) <= 9.6


def test_it_does_not_grow_unless_it_is_used():
    server = Server(AdaptiveLimit(1, 256), SERVICES["exponential"], rate=40.0)
    assert set(server.run(120.0)) == {16}


def test_a_server_that_batches_is_not_held_down_near_one():
    limit = AdaptiveLimit(1, 256)
    rng = random.Random(3)
    levels = []
    now = 0.0
    for step in range(20_000):  # one answer after another, each 20 ms and 1 ms for each that is there with it
        latency_s = (0.02 + 0.001 * limit.limit) * rng.uniform(0.8, 1.2)
        now += latency_s / limit.limit
        limit.finished(latency_s, limit.limit, now)
        levels.append(limit.limit if step > 10_000 else 0)
    # e = f / (20 + f) is 0.7 at 47; there it makes 70 % of the most that it ever could.
    assert 35 <= mean(filter(None, levels)) <= 60


def test_failures_that_are_few_do_not_shrink_it():
    limit = AdaptiveLimit(1, 256)
    for step in range(1000):
        limit.finished(0.05, 1, step * 0.1)
        if step % 20 == 0:
            limit.failed(step * 0.1)
    assert limit.limit == 16


def test_many_failures_at_once_shrink_it_once():
    limit = AdaptiveLimit(1, 256)
    limit.finished(1.0, 1, 0.0)
    for _ in range(100):
        limit.failed(0.5)
    shrunk = limit.limit
    assert 8 < shrunk < 16
    limit.failed(1.6)
    assert limit.limit < shrunk


def test_it_begins_between_its_bounds():
    assert AdaptiveLimit(1, 256).limit == 16
    assert AdaptiveLimit(10, 10).limit == 10
    assert AdaptiveLimit(1, 1).limit == 1
    assert AdaptiveLimit(8, 4).limit == 8
    assert repr(AdaptiveLimit(1, 256)) == "<AdaptiveLimit 16, 1 to 256>"


events = st.lists(
    st.one_of(
        st.tuples(st.floats(0.0, 10.0), st.integers(-2, 2), st.floats(0.0, 1.0)),
        st.tuples(st.none(), st.just(0), st.floats(0.0, 1.0)),
    ),
    max_size=300,
)


@given(st.integers(1, 40), st.integers(0, 100), events, st.integers(1, 20))
def test_whatever_it_is_told_it_stays_between_its_bounds(floor, above, told, repeated):
    limit = AdaptiveLimit(floor, floor + above)
    now = 0.0
    for latency_s, off, pause in told:
        for _ in range(repeated):
            now += pause
            if latency_s is None:
                limit.failed(now)
            else:
                limit.finished(latency_s, max(1, limit.limit + off), now)
            assert floor <= limit.limit <= floor + above


def test_a_fixed_limit_stays_as_it_is():
    limit = FixedLimit(16)
    limit.finished(10.0, 16, 1.0)
    limit.failed(2.0)
    assert limit.limit == 16
    assert repr(limit) == "<FixedLimit 16>"
