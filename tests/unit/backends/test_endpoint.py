# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.choosing.health import EndpointHealth, HealthRules
from backends.endpoint import SLOW_START_S, Endpoint
from backends.outcome import Ending, Outcome
from qos.limit import AdaptiveLimit, FixedLimit
from tests.fakes.endpoints import IdleBackend
from tests.fakes.ledgers import Crew

NAME = "oip:10.20.0.5:8000"
COMPANY = SimpleNamespace(may_eject=lambda: True, others_serve=lambda: True)


class NotingLimit(FixedLimit):
    """Keeps what it was told."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.told: list[object] = []

    def finished(self, latency_s: float, in_flight: int, now: float) -> None:
        self.told.append((round(latency_s, 6), in_flight))

    def failed(self, now: float) -> None:
        self.told.append("failed")


@pytest.fixture
def endpoint() -> Endpoint:
    endpoint = Endpoint(NAME, IdleBackend(), NotingLimit(4), zone="edge")
    endpoint.health.rules = HealthRules(failures=2)
    endpoint.health.peers = COMPANY
    return endpoint


def ended(
    ending: Ending, after_s: float, *, held_s: float | None = None, retry_after_s: float | None = None
) -> Outcome:
    held_s = after_s if held_s is None else held_s
    return Outcome(ending=ending, latency_s=after_s, held_s=held_s, retry_after_s=retry_after_s)


def ask(endpoint: Endpoint, ending: Ending, *, now: float, after_s: float) -> None:
    """One request from its beginning to its end."""
    endpoint.take(now)
    endpoint.finished(ended(ending, after_s), now + after_s)


def test_it_has_as_many_places_as_slots(endpoint):
    for _ in range(4):
        assert endpoint.free(0.0)
        endpoint.take(0.0)
    assert not endpoint.free(0.0)
    assert endpoint.in_flight == endpoint.slots == 4
    endpoint.finished(ended(Ending.ANSWERED, 0.1), 0.1)
    assert endpoint.free(0.1)


def test_its_places_follow_its_limit(endpoint):
    endpoint.take(0.0)
    endpoint.take(0.0)
    endpoint.limit.limit = 1
    assert not endpoint.free(0.0)
    assert repr(endpoint) == f"<Endpoint {NAME} healthy, 2 of 1 in flight>"


def test_it_is_not_free_while_its_backend_is_not_ready(endpoint):
    endpoint.backend.ready = False
    assert not endpoint.free(0.0)
    assert endpoint.state(0.0) == "loading"
    endpoint.take(0.0)  # picked just before
    assert repr(endpoint) == f"<Endpoint {NAME} not ready, 1 of 4 in flight>"


def test_it_gets_nothing_new_while_it_drains(endpoint):
    endpoint.take(0.0)
    endpoint.draining = True
    assert not endpoint.free(0.0)
    assert not endpoint.usable
    assert endpoint.state(0.0) == "draining"
    endpoint.finished(ended(Ending.ANSWERED, 0.2), 0.2)
    assert endpoint.prediction.seconds(0.2) == 0.2
    assert repr(endpoint) == f"<Endpoint {NAME} draining, 0 of 4 in flight>"


def test_a_miscount_is_a_bug_and_said_at_once(endpoint):
    with pytest.raises(RuntimeError, match="released more often than taken"):
        endpoint.finished(ended(Ending.ANSWERED, 0.1), 0.0)
    for _ in range(4):
        endpoint.take(0.0)
    with pytest.raises(RuntimeError, match="4 of 4 in flight"):
        endpoint.take(0.0)
    assert endpoint.in_flight == 4


def test_the_limit_learns_with_how_many_in_flight_it_was(endpoint):
    endpoint.take(1.0)
    endpoint.take(1.5)
    endpoint.finished(ended(Ending.ANSWERED, 0.5), 2.0)  # the second
    endpoint.take(2.5)
    endpoint.finished(ended(Ending.ANSWERED, 2.0), 3.0)  # the first
    endpoint.finished(ended(Ending.ANSWERED, 1.5), 4.0)
    assert endpoint.limit.told == [(0.5, 2), (2.0, 1), (1.5, 2)]


def test_what_is_unanswered_for_long_looks_slow_before_it_fails(endpoint):
    ask(endpoint, Ending.ANSWERED, now=0.0, after_s=0.1)
    assert endpoint.age(1.0) == 0.0
    endpoint.take(1.0)
    endpoint.take(2.0)
    assert endpoint.age(4.0) == 3.0
    assert endpoint.expected_s(4.0) == 3.0
    endpoint.finished(ended(Ending.CANCELLED, 3.0), 4.0)
    assert endpoint.age(4.0) == 2.0
    assert endpoint.expected_s(4.0) == 3.0  # it took at least that long


def test_one_that_answers_others_is_not_silent(endpoint):
    assert endpoint.usual_s(0.0) is None
    ask(endpoint, Ending.ANSWERED, now=0.0, after_s=0.1)
    endpoint.take(1.0)
    assert endpoint.silent_s(4.0) == endpoint.usual_s(4.0) == 3.0
    ask(endpoint, Ending.ANSWERED, now=4.0, after_s=0.1)
    assert endpoint.silent_s(4.2) == pytest.approx(0.1)
    assert endpoint.usual_s(4.15) == pytest.approx(0.1)
    assert endpoint.age(4.2) == pytest.approx(3.2)


def test_long_silence_is_told_by_what_it_usually_takes(endpoint):
    endpoint.take(0.0)
    assert not endpoint.stuck(1.0)
    assert endpoint.stuck(1.1)
    endpoint.finished(ended(Ending.ANSWERED, 5.0), 5.0)
    assert not endpoint.stuck(60.0)  # it has nothing to do
    endpoint.take(60.0)
    assert not endpoint.stuck(109.0)
    assert endpoint.stuck(111.0)


def test_while_it_is_penalised_it_costs_its_penalty(endpoint):
    ask(endpoint, Ending.ANSWERED, now=0.0, after_s=0.1)
    ask(endpoint, Ending.FAILED, now=1.0, after_s=0.0)
    assert endpoint.usual_s(1.0) == 5.0


def test_a_stream_counts_as_answered_from_its_first_byte(endpoint):
    endpoint.take(0.0)
    endpoint.take(1.0)
    endpoint.first_byte(0.25, 0.25)
    assert endpoint.age(2.0) == 1.0
    assert endpoint.prediction.usual == 0.25
    assert not endpoint.finished(ended(Ending.ANSWERED, 0.25, held_s=60.0), 60.0)
    assert endpoint.prediction.usual == 0.25
    assert endpoint.in_flight == 1
    assert endpoint.finished(ended(Ending.ANSWERED, 60.0), 61.0)


def test_a_stream_that_breaks_off_is_a_failure(endpoint):
    endpoint.take(0.0)
    endpoint.first_byte(0.25, 0.25)
    endpoint.finished(ended(Ending.FAILED, 0.25, held_s=3.0), 3.0)
    assert endpoint.penalised(3.0)
    assert endpoint.limit.told == [(0.25, 1), "failed"]


def test_failures_are_penalised_and_eject(endpoint):
    ask(endpoint, Ending.FAILED, now=0.0, after_s=0.001)
    assert endpoint.expected_s(0.001) == 5.0
    assert endpoint.state(0.0) == "healthy"
    ask(endpoint, Ending.FAILED, now=1.0, after_s=0.001)
    assert endpoint.state(1.1) == "ejected"
    assert not endpoint.free(1.1)
    assert endpoint.limit.told == ["failed", "failed"]
    endpoint.take(6.1)
    assert endpoint.state(6.1) == "probing"
    endpoint.finished(ended(Ending.ANSWERED, 0.1), 6.2)
    assert endpoint.state(6.2) == "healthy"


def test_what_was_sent_before_the_ejection_neither_helps_nor_harms(endpoint):
    for start in (0.0, 0.1, 0.2, 0.3):
        endpoint.take(start)
    endpoint.finished(ended(Ending.FAILED, 0.2), 0.4)
    endpoint.finished(ended(Ending.FAILED, 0.2), 0.5)
    assert endpoint.state(0.5) == "ejected"
    endpoint.take(5.5)
    endpoint.finished(ended(Ending.ANSWERED, 5.6), 5.6)
    endpoint.finished(ended(Ending.FAILED, 5.6), 5.7)
    assert endpoint.state(5.7) == "probing"
    endpoint.finished(ended(Ending.FAILED, 0.3), 5.8)
    assert endpoint.state(5.8) == "ejected"


def test_a_hung_endpoint_is_ejected_by_time_outs(endpoint):
    ask(endpoint, Ending.ANSWERED, now=0.0, after_s=0.1)
    ask(endpoint, Ending.TIMED_OUT, now=1.0, after_s=1.0)
    ask(endpoint, Ending.TIMED_OUT, now=2.0, after_s=1.0)
    assert endpoint.state(3.0) == "ejected"


def test_a_client_that_waits_for_less_than_usual_ejects_nobody(endpoint):
    ask(endpoint, Ending.ANSWERED, now=0.0, after_s=0.1)
    for now in range(1, 50):
        ask(endpoint, Ending.TIMED_OUT, now=float(now), after_s=0.01)
    assert endpoint.state(50.0) == "healthy"
    assert endpoint.limit.told == [(0.1, 1)]


@pytest.mark.parametrize("outcome", [ended(Ending.CANCELLED, 0.01), Outcome.unused()])
def test_a_trial_that_was_cancelled_is_made_again(endpoint, outcome):
    endpoint.health.down = False
    for now in (0.0, 0.1):
        ask(endpoint, Ending.FAILED, now=now, after_s=0.01)
    endpoint.take(6.0)
    endpoint.finished(outcome, 6.0 + outcome.held_s)
    assert endpoint.state(6.1) == "ejected"
    assert endpoint.free(6.1)


def test_a_refused_request_shows_that_it_is_there_and_no_latency(endpoint):
    for now in (0.0, 0.1):
        ask(endpoint, Ending.FAILED, now=now, after_s=0.01)
    ask(endpoint, Ending.BLAMELESS, now=6.0, after_s=0.001)
    assert endpoint.state(6.1) == "healthy"
    assert endpoint.prediction.usual is None


def test_after_its_return_its_places_grow(endpoint):
    endpoint.health.joined(100.0)
    rooms = [endpoint.room(100.0 + seconds) for seconds in (0.0, 2.4, 2.6, 5.1, 9.9, SLOW_START_S, 1e6)]
    assert rooms == [1, 1, 2, 3, 4, 4, 4]
    endpoint.take(100.0)
    assert not endpoint.free(100.0)
    assert endpoint.slots == 4


def test_one_that_was_never_away_has_all_its_places(endpoint):
    assert endpoint.room(0.0) == 4


steps = st.lists(
    st.tuples(st.sampled_from(["take", "first", *Ending]), st.floats(0.0, 3.0), st.integers(0, 3)), max_size=80
)


@given(steps)
def test_it_counts_exactly_and_knows_the_oldest(events):
    """Against a plain list of what is out."""
    endpoint = Endpoint(NAME, IdleBackend(), FixedLimit(4), health=EndpointHealth(HealthRules(failures=3)))
    endpoint.health.peers = COMPANY
    waited_for: list[float] = []
    answering: list[float] = []
    now = 0.0
    for what, later, which in events:
        now += later + 0.001  # no two at one instant: then it is not told which of them ended
        if what == "take":
            if endpoint.in_flight < 4:
                endpoint.take(now)
                waited_for.append(now)
        elif what == "first":
            if waited_for:
                taken = waited_for.pop(which % len(waited_for))
                answering.append(taken)
                endpoint.first_byte(now - taken, now)
        elif waited_for or answering:
            both = waited_for + answering
            taken = both[which % len(both)]
            (waited_for if taken in waited_for else answering).remove(taken)
            endpoint.finished(ended(what, now - taken), now)
        assert endpoint.in_flight == len(waited_for) + len(answering)
        assert endpoint.age(now) == (now - min(waited_for) if waited_for else 0.0)


def test_one_that_hangs_is_left_out_for_longer_each_time_however_much_it_kept_waiting(endpoint):
    """Its own time-outs must not make its silence look usual: it would get one request after the other, for ever."""
    for now in (0.0, 0.1, 0.2):
        ask(endpoint, Ending.ANSWERED, now=now, after_s=0.05)
    for start in (1.0, 1.1, 1.2, 1.3):
        endpoint.take(start)
    for start in (1.0, 1.1, 1.2, 1.3):
        endpoint.finished(ended(Ending.TIMED_OUT, 1.0), start + 1.0)
    for _ in range(20):
        endpoint.prediction.at_least(1.0, 3.0)
    assert endpoint.state(3.0) == "ejected"
    ask(endpoint, Ending.TIMED_OUT, now=8.0, after_s=1.0)
    assert endpoint.state(9.0) == "ejected"
    assert not endpoint.free(18.9)
    assert endpoint.free(19.1)


def test_a_limit_that_another_worker_lowers_between_a_look_and_the_taking_is_no_fault_of_ours():
    """A stream's first byte is learnt from without the lock: whoever waits for it would hold up a reply."""
    with Crew(2) as crew:
        endpoint = Endpoint(NAME, IdleBackend(), AdaptiveLimit(1, 64))
        endpoint.join(crew.workers[0].column("pool", NAME))
        other = crew.workers[1].column("pool", NAME)
        other.publish(2)
        endpoint.take(0.0)
        assert endpoint.has_room(0.0)
        other.publish(1)
        endpoint.take(0.0)
        assert (endpoint.in_flight, endpoint.has_room(0.0)) == (2, False)
        fixed = Endpoint(NAME, IdleBackend(), FixedLimit(1))
        fixed.join(crew.workers[0].column("pool", "fixed"))
        fixed.take(0.0)
        with pytest.raises(RuntimeError, match="no place"):
            fixed.take(0.0)
