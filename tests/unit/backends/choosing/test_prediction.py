# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.choosing.prediction import DECAY_S, LEAST_PENALTY_S, MOST_RETRY_AFTER_S, Prediction

latencies = st.floats(0.0, 100.0)
asked = st.one_of(st.none(), st.floats(0.0, 1e6))


@pytest.fixture
def prediction() -> Prediction:
    return Prediction()


def test_nothing_is_known_before_the_first_answer(prediction):
    assert prediction.seconds(0.0) is None
    assert prediction.usual is None
    assert not prediction.penalised(0.0)
    assert repr(prediction) == "<Prediction nothing known, peak 0 ms, penalty 0 s>"


def test_a_slower_answer_counts_at_once_and_a_faster_one_with_time(prediction):
    prediction.observe(0.010, now=0.0)
    prediction.observe(0.500, now=0.0)
    assert prediction.seconds(0.0) == 0.5
    prediction.observe(0.010, now=0.0)
    assert prediction.seconds(0.0) == 0.5
    prediction.observe(0.010, now=DECAY_S)
    assert prediction.seconds(DECAY_S) == pytest.approx(0.010 + 0.490 / exp(1))
    assert repr(prediction) == "<Prediction usually 49.7 ms, peak 190 ms, penalty 0 s>"


def test_who_is_not_asked_fades_but_is_not_forgotten(prediction):
    prediction.observe(2.0, now=0.0)
    assert prediction.seconds(DECAY_S) == pytest.approx(2.0 / exp(1))
    assert prediction.usual == 2.0


def test_an_attempt_given_up_only_raises(prediction):
    prediction.observe(0.2, now=0.0)
    prediction.at_least(0.1, now=0.0)
    assert prediction.seconds(0.0) == 0.2
    assert prediction.usual == 0.2
    prediction.at_least(1.5, now=0.0)
    assert prediction.seconds(0.0) == 1.5
    assert prediction.usual == pytest.approx(0.33)


def test_an_attempt_given_up_is_all_that_is_known_of_a_silent_one(prediction):
    prediction.at_least(1.5, now=7.0)
    assert prediction.seconds(7.0) == 1.5
    assert prediction.usual is None


def test_a_failure_costs_five_seconds_however_fast_it_came(prediction):
    prediction.observe(0.01, now=0.0)
    prediction.penalise(None, now=0.0)
    assert prediction.seconds(0.0) == LEAST_PENALTY_S
    assert prediction.penalised(0.0)
    assert prediction.seconds(DECAY_S) == pytest.approx(LEAST_PENALTY_S / exp(1))


def test_a_failure_without_any_answer_is_known_too(prediction):
    prediction.penalise(None, now=3.0)
    assert prediction.seconds(3.0) == LEAST_PENALTY_S
    assert prediction.seconds(3.0 + 20 * DECAY_S) is None  # as if it had never been asked


def test_a_pause_asked_for_is_kept_in_full_and_fades_only_then(prediction):
    prediction.penalise(30.0, now=100.0)
    assert prediction.held_until == 130.0
    assert prediction.seconds(129.0) == 30.0
    assert prediction.seconds(130.0 + DECAY_S) == pytest.approx(30.0 / exp(1))


def test_a_later_failure_does_not_shorten_the_pause(prediction):
    prediction.penalise(30.0, now=100.0)
    prediction.penalise(1.0, now=101.0)
    prediction.penalise(None, now=102.0)
    assert prediction.held_until == 130.0
    assert prediction.seconds(125.0) == 30.0


def test_answers_asked_for_after_the_failure_take_the_penalty_back(prediction):
    prediction.penalise(None, now=10.0)
    prediction.observe(0.1, now=10.05)  # was on its way already
    assert prediction.seconds(10.05) == pytest.approx(LEAST_PENALTY_S, rel=0.01)
    prediction.observe(0.1, now=10.2)
    assert prediction.seconds(10.2) == pytest.approx(LEAST_PENALTY_S / 2, rel=0.03)
    for _ in range(12):
        prediction.observe(0.1, now=10.4)
    assert not prediction.penalised(10.4)
    assert prediction.seconds(10.4) == pytest.approx(0.1)


def test_a_penalty_that_has_faded_is_over(prediction):
    prediction.observe(0.0, now=0.0)
    prediction.penalise(None, now=0.0)
    assert prediction.penalised(60.0)
    assert not prediction.penalised(90.0)


@given(retry_after_s=asked, now=st.floats(0.0, 1e6))
def test_a_wish_never_makes_the_penalty_less(retry_after_s, now):
    with_wish, without = Prediction(), Prediction()
    with_wish.penalise(retry_after_s, now)
    without.penalise(None, now)
    for later in (0.0, 1.0, 30.0):
        assert (with_wish.seconds(now + later) or 0.0) >= (without.seconds(now + later) or 0.0)


@given(retry_after_s=asked, now=st.floats(0.0, 1e6))
def test_nobody_can_ask_to_be_left_alone_for_longer_than_five_minutes(retry_after_s, now):
    prediction = Prediction()
    prediction.penalise(retry_after_s, now)
    assert now <= prediction.held_until <= now + MOST_RETRY_AFTER_S
    assert LEAST_PENALTY_S <= (prediction.seconds(now) or 0.0) <= MOST_RETRY_AFTER_S


@given(st.lists(st.tuples(latencies, st.floats(0.0, 5.0)), min_size=1))
def test_the_prediction_is_between_the_last_answer_and_the_slowest(answers):
    prediction, now = Prediction(), 0.0
    for seconds, later in answers:
        now += later
        prediction.observe(seconds, now)
        told = prediction.seconds(now)
        assert told is not None
        slowest = max(each for each, _ in answers)
        assert seconds - 1e-9 <= told <= slowest + 1e-9


@given(st.lists(st.tuples(st.sampled_from("oapn"), latencies, st.floats(0.0, 50.0))))
def test_time_alone_never_makes_it_slower(events):
    prediction, now = Prediction(), 0.0
    for kind, seconds, later in events:
        now += later
        if kind == "o":
            prediction.observe(seconds, now)
        elif kind == "a":
            prediction.at_least(seconds, now)
        elif kind == "p":
            prediction.penalise(seconds, now)
        first, second = prediction.seconds(now) or 0.0, prediction.seconds(now + 1.0) or 0.0
        assert second <= first


def test_after_a_long_silence_the_averages_begin_anew():
    """Else an endpoint that nobody asked because it was slow once would need many answers to be believed."""
    prediction = Prediction()
    assert prediction.old(0.0)
    prediction.observe(0.9, 1.0)
    prediction.at_least(1.0, 2.0)
    assert not prediction.old(12.0)
    assert prediction.old(12.1)
    prediction.observe(0.1, 12.2)  # it was asked when the news were old
    assert (prediction.usual, prediction.answers) == (0.1, 0.1)
    prediction.observe(0.2, 12.5)
    assert prediction.usual == prediction.answers == pytest.approx(0.11)
