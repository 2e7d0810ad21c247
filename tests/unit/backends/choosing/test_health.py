# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.choosing.health import LEAST_REQUESTS, MOST_TIMES, Alone, EndpointHealth, HealthRules, HealthState
from backends.pool_settings import HealthSettings, ProbeSettings

HEALTHY, EJECTED, PROBING = HealthState.HEALTHY, HealthState.EJECTED, HealthState.PROBING
RULES = HealthRules(failures=3, eject_s=5.0, probe_failures=2)


class Company:
    """Peers that allow what they are told to."""

    def __init__(self) -> None:
        self.may = True
        self.serve = True

    def may_eject(self) -> bool:
        return self.may

    def others_serve(self) -> bool:
        return self.serve


@pytest.fixture
def company() -> Company:
    return Company()


@pytest.fixture
def health(company) -> EndpointHealth:
    return watched(company)


def watched(company: Company, rules: HealthRules = RULES) -> EndpointHealth:
    health = EndpointHealth(rules)
    health.peers = company
    return health


def fail(health: EndpointHealth, times: int, now: float) -> None:
    for _ in range(times):
        health.failed(now)


def relapse(health: EndpointHealth, now: float) -> float:
    """The request that tries it fails; how long it is out now."""
    health.taken(now)
    assert health.state is PROBING
    health.failed(now)
    assert health.state is EJECTED
    assert health.tried_again_at is not None
    return health.tried_again_at - now


def test_failures_in_a_row_eject_it(health):
    fail(health, 2, now=0.0)
    health.answered(0.0)
    fail(health, 2, now=1.0)
    assert health.state is HEALTHY
    assert health.admits(1.0)
    health.failed(1.0)
    assert repr(health) == "<EndpointHealth ejected, 3 failed in a row>"
    assert not health.admits(5.9)
    assert health.tried_again_at == 6.0


def test_one_request_tries_it_again_and_its_answer_brings_it_back(health):
    fail(health, 3, now=0.0)
    assert health.admits(5.0)
    health.taken(5.0)
    assert health.state is PROBING
    assert not health.admits(5.0)
    assert health.tried_again_at is None
    health.answered(5.1)
    assert health.state is HEALTHY
    assert health.admits(5.1)
    assert health.returned_at == 5.1


def test_each_relapse_doubles_the_ejection_up_to_twelve_times(health):
    fail(health, 3, now=0.0)
    now, out = 5.0, []
    for _ in range(6):
        out.append(relapse(health, now))
        now += out[-1]
    assert out == [10.0, 20.0, 40.0, MOST_TIMES * 5.0, MOST_TIMES * 5.0, MOST_TIMES * 5.0]


def test_one_that_fails_again_soon_after_its_return_has_relapsed(health):
    fail(health, 3, now=0.0)
    health.taken(5.0)
    health.answered(5.0)
    fail(health, 3, now=9.0)
    assert health.tried_again_at == 9.0 + 10.0


def test_one_that_was_well_for_longer_than_it_was_out_starts_anew(health):
    fail(health, 3, now=0.0)
    health.taken(5.0)
    health.answered(5.0)
    fail(health, 3, now=20.0)
    assert health.tried_again_at == 20.0 + 5.0


def test_a_trial_that_tells_nothing_leaves_it_to_the_next_request(health):
    fail(health, 3, now=0.0)
    health.taken(5.0)
    health.undecided(5.5)
    assert health.state is EJECTED
    assert health.admits(5.5)
    health.taken(5.5)
    health.failed(5.6)
    assert health.tried_again_at == 5.6 + 10.0


def test_too_many_failures_among_answers_eject_it_too(company):
    health = watched(company, HealthRules(failures=1000, failure_rate=0.5))
    for _ in range(LEAST_REQUESTS // 2 - 1):
        health.failed(0.0)
        health.answered(0.0)
    assert health.state is HEALTHY
    health.answered(1.0)
    health.failed(1.0)
    assert health.state is EJECTED


def test_failures_are_forgotten_after_the_window(company):
    health = watched(company, HealthRules(failures=1000, failure_rate=0.5))
    fail(health, 19, now=0.5)
    fail(health, 10, now=11.5)
    assert health.state is HEALTHY
    fail(health, 10, now=12.5)
    assert health.state is EJECTED


def test_a_rate_of_zero_still_needs_a_failure(company):
    health = watched(company, HealthRules(failures=1000, failure_rate=0.0))
    for _ in range(LEAST_REQUESTS):
        health.answered(0.0)
    assert health.state is HEALTHY


def test_it_stays_when_the_pool_cannot_spare_it(health, company):
    company.may = False
    fail(health, 50, now=0.0)
    assert health.state is HEALTHY
    assert health.failing
    company.may = True
    health.failed(1.0)  # another came back meanwhile
    assert health.state is EJECTED
    assert not health.failing


def test_nobody_is_ejected_who_is_alone():
    health = EndpointHealth(RULES)
    assert isinstance(health.peers, Alone)
    fail(health, 1000, now=0.0)
    assert health.state is HEALTHY


def test_failed_probes_eject_it_whoever_is_left(health, company):
    company.may = False
    health.probe_failed(0.0)
    assert health.state is HEALTHY
    health.probe_succeeded(1.0)
    health.probe_failed(2.0)
    health.probe_failed(3.0)
    assert repr(health) == "<EndpointHealth ejected by probes, 0 failed in a row>"
    assert not health.admits(1e9)
    assert health.tried_again_at is None
    health.probe_failed(4.0)
    health.probe_succeeded(5.0)
    assert health.state is HEALTHY
    assert health.returned_at == 5.0


def test_a_probe_does_not_forgive_what_requests_told(health):
    fail(health, 3, now=0.0)
    health.probe_succeeded(1.0)
    assert health.state is EJECTED
    assert not health.admits(1.0)


def test_probes_that_fail_end_a_trial(health):
    fail(health, 3, now=0.0)
    health.taken(5.0)
    health.probe_failed(5.1)
    health.probe_failed(5.2)
    assert not health.admits(1e9)
    health.answered(5.3)  # late, and not believed against the probes
    assert health.state is EJECTED


def test_probes_that_fail_while_it_is_out_keep_it_out(health):
    fail(health, 3, now=0.0)
    health.probe_failed(1.0)
    health.probe_failed(2.0)
    assert not health.admits(100.0)
    health.probe_succeeded(101.0)
    assert health.admits(101.0)


def test_an_answer_while_it_is_out_brings_it_back(health):
    fail(health, 3, now=0.0)
    health.answered(1.0)  # nobody was healthy, so it was asked all the same
    assert health.state is HEALTHY


def test_it_starts_slowly_only_where_others_serve(health, company):
    company.serve = False
    health.joined(0.0)
    assert health.returned_at is None
    fail(health, 3, now=0.0)
    health.taken(5.0)
    health.answered(5.0)
    assert health.returned_at is None
    company.serve = True
    health.joined(7.0)
    assert health.returned_at == 7.0


def test_the_rules_are_those_of_the_config():
    settings = HealthSettings(failures=7, failure_rate=0.2, eject=3.0, max_ejected=0.1, probe=ProbeSettings(failures=4))
    assert HealthRules.of(settings) == HealthRules(
        failures=7, failure_rate=0.2, eject_s=3.0, max_ejected=0.1, probe_failures=4
    )
    assert HealthRules.of(HealthSettings()) == HealthRules()


EVENTS = st.sampled_from(["answered", "failed", "undecided", "probe_failed", "probe_succeeded", "taken"])
story = st.lists(st.tuples(EVENTS, st.floats(0.0, 20.0), st.booleans()), max_size=60)


@given(story)
def test_any_story_keeps_to_the_table_of_moves(events):
    company = Company()
    health, now = watched(company), 0.0
    for event, later, company.may in events:
        now += later
        before = health.state
        if event != "taken" or health.admits(now):
            getattr(health, event)(now)
        assert not (before is HEALTHY and health.state is PROBING)
        assert health.admits(now) <= (not health.down)
        if before is HEALTHY and health.state is EJECTED:
            assert company.may or health.down
        if health.state is EJECTED and not health.down:
            assert health.tried_again_at is not None
            assert health.tried_again_at <= now + MOST_TIMES * RULES.eject_s


@given(story)
def test_whatever_happened_it_comes_back(events):
    """An endpoint that answers everything from now on is healthy after one probe and one request."""
    health, now = watched(Company()), 0.0
    for event, later, _ in events:
        now += later
        if event != "taken" or health.admits(now):
            getattr(health, event)(now)
    health.probe_succeeded(now)
    now += MOST_TIMES * RULES.eject_s
    if health.state is not PROBING:
        assert health.admits(now)
        health.taken(now)
    health.answered(now)
    assert health.state is HEALTHY


@given(story)
def test_at_most_one_request_tries_it_at_once(events):
    health, now, tried = watched(Company()), 0.0, False
    for event, later, _ in events:
        now += later
        if event == "taken" and health.admits(now) and health.state is not HEALTHY:
            assert not tried
            health.taken(now)
            tried = True
        elif event != "taken":
            getattr(health, event)(now)
            tried = tried and health.state is PROBING


def test_an_illegal_move_is_a_bug_and_said_at_once(health):
    with pytest.raises(RuntimeError, match="cannot become probing"):
        health._move(PROBING, 0.0)
