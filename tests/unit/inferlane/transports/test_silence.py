# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferlane.transports.silence import LONGEST_S, QUIET_S, Silence


def test_who_was_never_asked_is_never_dead():
    silence = Silence(0.0)

    assert not silence.dead(1e9)


def test_who_was_asked_and_says_nothing_is_dead_after_a_while():
    silence = Silence(0.0)
    silence.asked(10.0)
    silence.asked(10.0 + LONGEST_S / 2)  # the first question counts

    assert not silence.dead(10.0 + LONGEST_S - 0.001)
    assert silence.dead(10.0 + LONGEST_S)


def test_any_sign_of_life_begins_anew():
    silence = Silence(0.0)
    silence.asked(10.0)
    silence.heard(10.0 + LONGEST_S)

    assert not silence.dead(1e9)
    silence.asked(100.0)
    assert silence.dead(100.0 + LONGEST_S)


def test_a_quiet_peer_is_asked_for_a_sign_once():
    silence = Silence(0.0)

    assert not silence.quiet(QUIET_S - 0.001)
    assert silence.quiet(QUIET_S)
    silence.asked(QUIET_S)
    assert not silence.quiet(QUIET_S * 2)


@given(st.lists(st.tuples(st.sampled_from(["asked", "heard"]), st.floats(0.0, 5.0))))
def test_dead_means_an_old_question_and_nothing_since(steps):
    silence, now, question = Silence(0.0), 0.0, None
    for what, later in steps:
        now += later
        getattr(silence, what)(now)
        question = None if what == "heard" else now if question is None else question

        assert silence.dead(now) is (question is not None and now - question >= LONGEST_S)
