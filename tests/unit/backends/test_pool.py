# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from backends.choosing.health import HealthRules, HealthState
from backends.choosing.picker import PICKERS, least_latency, round_robin
from backends.endpoint import SLOW_START_S, Endpoint
from backends.messages import Api
from backends.outcome import Ending, Outcome
from backends.pool import Pool
from qos.limit import FixedLimit
from tests.fakes.endpoints import IdleBackend, pool_of
from tests.fakes.ledgers import Crew

RULES = HealthRules(failures=3, eject_s=5.0, max_ejected=0.5)


def endpoint(name: str, slots: int = 2, zone: str | None = None) -> Endpoint:
    return Endpoint(name, IdleBackend(), FixedLimit(slots), zone=zone)


def pool(names: str = "abc", *, pick=round_robin, slots: int = 2, rules: HealthRules = RULES) -> Pool:
    return Pool("magika", [endpoint(name, slots) for name in names], pick, rules=rules)


def end(magika: Pool, at: Endpoint, ending: Ending = Ending.ANSWERED, *, after_s: float = 0.1, now: float) -> None:
    magika.finished(at, Outcome(ending=ending, latency_s=after_s, held_s=after_s), "batch", now)


def ask(magika: Pool, at: Endpoint, ending: Ending = Ending.ANSWERED, *, now: float, after_s: float = 0.1) -> None:
    """One request to this endpoint, picked or not, from its beginning to its end."""
    at.take(now)
    end(magika, at, ending, after_s=after_s, now=now + after_s)


def eject(magika: Pool, name: str, now: float) -> Endpoint:
    found = magika.find(name)
    assert found is not None
    for _ in range(RULES.failures):
        ask(magika, found, Ending.FAILED, now=now, after_s=0.0)
    assert found.health.state is HealthState.EJECTED
    return found


def picked(magika: Pool, now: float, times: int, avoid: frozenset[str] = frozenset()) -> list[str]:
    """Who gets so many requests, one after the other, each answered at once."""
    names = []
    for _ in range(times):
        found = magika.pick(now, avoid=avoid)
        assert found is not None
        names.append(found.name)
        ask(magika, found, now=now, after_s=0.0)
    return names


def test_it_picks_in_turn_and_only_what_is_free():
    magika = pool()
    names = []
    while (found := magika.pick(0.0)) is not None:
        found.take(0.0)
        names.append(found.name)
    assert names == ["a", "b", "c", "a", "b", "c"]
    end(magika, magika.endpoints[1], now=0.1)
    assert magika.pick(0.1) is magika.endpoints[1]
    assert repr(magika) == "<Pool magika 3 of 3 endpoints healthy, 5 in flight>"


def test_the_turn_goes_on_where_some_are_out():
    magika = pool("abcd")
    magika.endpoints[1].draining = True
    assert picked(magika, 0.0, 6) == ["a", "c", "d", "a", "c", "d"]


def test_it_is_ready_while_any_endpoint_could_answer():
    magika = pool_of(1, 1)
    magika.endpoints[0].take(0.0)
    magika.endpoints[1].backend.ready = False
    assert magika.pick(0.0) is None
    assert magika.ready
    magika.endpoints[0].draining = True
    assert not magika.ready


def test_an_empty_pool_is_not_ready_and_has_nobody():
    nobody = Pool("empty", [], least_latency, zones=("edge",))
    assert not nobody.ready
    assert nobody.pick(0.0) is None
    assert nobody.places(0.0) == 1
    assert nobody.api is Api.OIP
    nobody.api_to_come = Api.OPENAI
    assert nobody.api is Api.OPENAI
    nobody.replace([endpoint("a")])
    assert nobody.api is Api.OIP


def test_its_places_are_those_of_who_may_be_asked():
    magika = pool("abc", slots=4)
    assert magika.places(0.0) == 12
    magika.endpoints[0].draining = True
    eject(magika, "b", now=0.0)
    assert magika.places(0.0) == 4
    assert magika.more_than_one
    magika.endpoints[1].draining = True
    assert not magika.more_than_one


def test_failed_requests_eject_half_of_it_at_most():
    magika = pool("abcd")
    eject(magika, "a", now=0.0)
    eject(magika, "b", now=0.0)
    for name in "cd":
        for _ in range(50):
            ask(magika, magika.find(name), Ending.FAILED, now=0.0)
        assert magika.find(name).health.state is HealthState.HEALTHY


@pytest.mark.parametrize(("names", "share", "most"), [("a", 1.0, 0), ("ab", 0.1, 1), ("abc", 1.0, 2), ("abc", 0.0, 0)])
def test_at_least_one_stays(names, share, most):
    magika = pool(names, rules=HealthRules(failures=1, max_ejected=share))
    for each in magika.endpoints:
        ask(magika, each, Ending.FAILED, now=0.0)
    assert sum(each.health.state is HealthState.EJECTED for each in magika.endpoints) == most


def test_one_that_still_loads_is_not_counted_on():
    magika = pool("ab", rules=HealthRules(failures=1))
    magika.find("b").backend.ready = False
    ask(magika, magika.find("a"), Ending.FAILED, now=0.0)
    assert magika.find("a").health.state is HealthState.HEALTHY


def test_one_that_drains_is_not_counted_on():
    magika = pool("abc", rules=HealthRules(failures=1, max_ejected=1.0))
    magika.find("c").draining = True
    for name in "ab":
        ask(magika, magika.find(name), Ending.FAILED, now=0.0)
    assert magika.find("b").health.state is HealthState.HEALTHY


def test_an_ejection_and_a_return_are_told_once_each():
    magika = pool()
    with capture_logs() as lines:
        out = eject(magika, "b", 0.0)
        ask(magika, out, now=RULES.eject_s + 1.0)
    told = [(each["event"], each["log_level"], each["endpoint"]) for each in lines]
    assert told == [("endpoint_ejected", "warning", "b"), ("endpoint_returned", "info", "b")]


def test_one_request_tries_an_ejected_one_and_brings_it_back_slowly():
    magika = pool("abc", slots=10)
    sick = eject(magika, "a", now=0.0)
    assert picked(magika, 1.0, 2) == ["b", "c"]
    assert magika.pick(5.0, avoid=frozenset("a")).name == "b"  # not by a request that it failed before
    trial = magika.pick(5.0)
    assert trial is sick
    trial.take(5.0)
    assert [magika.pick(5.0).name for _ in range(4)] == ["c", "b", "c", "b"]
    end(magika, trial, now=5.1)
    assert trial.health.state is HealthState.HEALTHY
    assert trial.room(5.2) == 1
    assert trial.room(5.1 + SLOW_START_S) == 10


def test_who_fails_comes_last_under_least_latency():
    magika = pool("abc", pick=least_latency, slots=1)
    for each in magika.endpoints:
        ask(magika, each, now=0.0)
    ask(magika, magika.find("a"), Ending.FAILED, now=1.0, after_s=0.001)
    assert set(picked(magika, 1.1, 20)) == {"b", "c"}


def test_who_asked_for_a_pause_is_left_alone_while_there_are_others():
    magika = pool("ab", slots=1)
    busy = magika.find("a")
    busy.take(0.0)
    magika.finished(busy, Outcome(ending=Ending.FAILED, latency_s=0.0, held_s=0.0, retry_after_s=30.0), "batch", 0.0)
    other = magika.pick(0.0)
    assert other.name == "b"
    other.take(0.0)
    assert magika.pick(29.0) is None  # it waits for b rather than break in on a
    assert magika.pick(30.0) is busy
    other.draining = True
    assert magika.pick(1.0) is busy  # nobody else is left


def test_one_that_only_fails_and_cannot_be_ejected_does_not_swallow_the_queue():
    magika = pool("abc", pick=least_latency, slots=1)
    eject(magika, "a", now=0.0)
    sink = magika.find("b")
    for _ in range(RULES.failures):
        ask(magika, sink, Ending.FAILED, now=0.0, after_s=0.0)
    assert sink.health.state is HealthState.HEALTHY
    magika.find("c").take(0.0)
    assert magika.pick(0.9) is None
    assert magika.pick(1.0) is sink
    ask(magika, sink, Ending.FAILED, now=1.0, after_s=0.0)
    assert magika.pick(1.5) is None
    assert magika.pick(2.0) is sink
    ask(magika, sink, now=2.0)
    assert magika.pick(2.2) is sink  # it answers again


def test_one_that_hangs_does_not_swallow_the_queue():
    magika = pool("ab", pick=least_latency, slots=2)
    hung, well = magika.endpoints
    for each in magika.endpoints:
        ask(magika, each, now=0.0, after_s=0.05)
    hung.take(1.0)
    well.take(1.0)
    well.take(1.0)
    assert magika.pick(1.9) is hung
    end(magika, well, now=1.95, after_s=0.95)
    well.take(1.95)
    assert magika.pick(2.1) is None
    end(magika, well, now=2.2, after_s=0.25)
    assert magika.pick(2.2) is well
    well.draining = True
    assert magika.pick(2.2) is hung  # nobody else is left


def test_where_all_are_out_those_that_probes_do_not_know_as_down_are_asked():
    magika = pool("ab", rules=HealthRules(failures=3, probe_failures=1))
    first, second = magika.endpoints
    eject(magika, "a", now=0.0)
    second.health.probe_failed(0.0)
    assert magika.ready
    assert magika.pick(1.0) is first
    ask(magika, first, now=1.0)
    assert first.health.state is HealthState.HEALTHY
    first.health.probe_failed(2.0)
    assert magika.pick(2.0) is None
    assert not magika.ready
    second.health.probe_succeeded(3.0)
    assert magika.pick(3.0) is second
    assert second.room(3.0) == 2  # nobody else serves: all its places at once


def test_what_is_expected_is_the_median_of_the_class_or_else_of_all():
    magika = pool("a", slots=100)
    assert magika.expected_s("batch", 0.0) is None
    for _ in range(30):
        ask(magika, magika.endpoints[0], now=1.0, after_s=0.2)
    assert magika.expected_s("batch", 1.2) == pytest.approx(0.2, rel=0.05)
    assert magika.expected_s("realtime", 1.2) == pytest.approx(0.2, rel=0.05)
    assert magika.latencies("realtime").count(1.2) == 0


def test_failures_and_streams_count_as_they_should():
    magika = pool("a", slots=100)
    only = magika.endpoints[0]
    for ending in (Ending.FAILED, Ending.TIMED_OUT, Ending.CANCELLED, Ending.BLAMELESS):
        ask(magika, only, ending, now=0.0)
    assert magika.latencies("batch").count(0.1) == 0
    only.take(1.0)
    magika.first_byte(only, 0.5, "batch", 1.5)
    magika.finished(only, Outcome(ending=Ending.ANSWERED, latency_s=0.5, held_s=9.0), "batch", 10.0)
    assert magika.latencies("batch").count(1.5) == pytest.approx(1.0, abs=0.5)
    assert only.in_flight == 0


def test_the_edge_goes_before_the_cloud_and_spills():
    edge, cloud = endpoint("e", 1, "edge"), endpoint("c", 1, "cloud")
    magika = Pool("magika", [cloud, edge], least_latency, zones=("edge", "cloud"))
    ask(magika, cloud, now=0.0, after_s=0.3)
    ask(magika, edge, now=0.0, after_s=0.1)
    assert magika.pick(1.0) is edge
    edge.take(1.0)
    assert magika.pick(1.0, waiting=1) is None
    assert magika.pick(1.0, waiting=4) is cloud
    assert magika.pick(2.0, waiting=1) is cloud  # the edge has said nothing for a second


def test_another_zone_goes_before_an_endpoint_to_be_avoided():
    edge, cloud = endpoint("e", 1, "edge"), endpoint("c", 1, "cloud")
    magika = Pool("magika", [edge, cloud], least_latency, zones=("edge", "cloud"))
    ask(magika, edge, now=0.0)
    ask(magika, cloud, now=0.0)
    assert magika.pick(0.2, avoid=frozenset("e")) is cloud
    cloud.take(0.2)
    assert magika.pick(0.2, avoid=frozenset("e")) is edge  # better than nobody


def test_new_ones_start_slowly_and_old_ones_finish():
    magika = pool("ab", slots=10)
    staying, leaving = magika.endpoints
    leaving.take(0.0)
    new = endpoint("n", 10)
    assert magika.replace([staying, new]) == [leaving]
    assert magika.pick(1.0) is not None
    assert new.room(1.0) == 1
    assert staying.room(1.0) == 10
    assert leaving.draining
    assert magika.find("b") is None
    end(magika, leaving, now=2.0)
    assert leaving.in_flight == 0
    assert magika.find("n") is new


def test_the_first_to_come_do_not_wait_for_each_other():
    magika = Pool("magika", [], round_robin)
    magika.replace([endpoint("a", 10), endpoint("b", 10)])
    assert magika.pick(0.0) is not None
    assert magika.places(0.0) == 20


@pytest.mark.parametrize("pick", PICKERS.values(), ids=PICKERS)
@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "ask", *Ending]), st.floats(0.0, 4.0), st.booleans()), max_size=100
    ),
)
def test_nobody_gets_more_than_its_places_and_a_free_healthy_one_is_used(pick, seed, steps):
    rng = random.Random(seed)
    magika = Pool("magika", [endpoint(name, slots) for name, slots in zip("abc", (1, 2, 3), strict=True)], pick)
    out: list[tuple[Endpoint, float]] = []
    now = 0.0
    for what, later, probed in steps:
        now += later
        if probed:
            each = rng.choice(magika.endpoints)
            rng.choice([each.health.probe_failed, each.health.probe_succeeded])(now)
        if what == "ask":
            found = magika.pick(now, waiting=1, avoid=frozenset(rng.sample("abc", rng.randrange(3))))
            if found is None:
                for each in magika.endpoints:
                    assert not each.free(now) or each.prediction.held_until > now or each.stuck(now)
            else:
                assert found.usable
                found.take(now)
                out.append((found, now))
        elif out:
            found, taken = out.pop(rng.randrange(len(out)))
            magika.finished(found, Outcome(ending=what, latency_s=now - taken, held_s=now - taken), "batch", now)
        assert Counter(each.name for each, _ in out) == Counter(
            {each.name: each.in_flight for each in magika.endpoints if each.in_flight}
        )
        assert all(each.in_flight <= each.slots for each in magika.endpoints)
        if magika.ready:
            assert magika.places(now) >= 1


def test_a_class_is_judged_by_what_it_saw_itself_and_time_outs_count():
    magika = pool("a", slots=100)
    for _ in range(30):
        ask(magika, magika.endpoints[0], now=1.0, after_s=0.2)
    assert magika.usual_s("realtime", 1.2) is None and magika.needed_s("realtime", 1.2) is None
    assert magika.usual_s("batch", 1.2) == pytest.approx(0.2, rel=0.05)
    found = magika.needed_s("batch", 1.2)
    assert found == pytest.approx(0.2, rel=0.06)
    ask(magika, magika.endpoints[0], Ending.TIMED_OUT, now=1.2, after_s=0.3)
    assert magika.needed_s("batch", 1.5) == pytest.approx(found * 1.05)


def test_places_are_counted_together_with_other_workers_and_an_endpoint_without_room_there_alone():
    with Crew(2, columns=1) as crew:
        pools = [pool_of(2, 2) for _ in crew.workers]
        with capture_logs() as logs:
            for pool, ledger in zip(pools, crew.workers, strict=True):
                pool.share(ledger)
        assert [(each["event"], each["endpoint"]) for each in logs] == [("endpoint_not_shared", "e1")] * 2
        pools[0].endpoints[0].take(0.0)
        pools[0].endpoints[1].take(0.0)
        assert [each.busy for each in pools[1].endpoints] == [1, 0]
        assert [each.in_flight for each in pools[1].endpoints] == [0, 0]
        assert pools[1].capacity(0.0) == (4, 3)
        pools[0].endpoints[0].finished(Outcome.unused(), 1.0)
        assert pools[1].capacity(1.0) == (4, 4)
