# SPDX-License-Identifier: Apache-2.0
"""What each type of message may say: the table against the rules that docs/wire.md states about all types."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferlane.header import RULES, Flag, Header, Type, WireError, changed, check

PROOF = Flag.COOKIE | Flag.AUTH
SERVER = {each for each in Type if each >= Type.REPLY}


def test_every_type_has_its_rule():
    assert RULES.keys() == set(Type)


def test_what_a_type_needs_it_also_allows():
    assert all(not rule.needed & ~rule.allowed for rule in RULES.values())


def test_later_fragments_may_say_nothing_that_the_first_may_not():
    assert all(not rule.allowed_later & ~rule.allowed for rule in RULES.values())


def test_only_clients_prove_who_they_are_and_only_a_challenge_hands_out_a_cookie():
    assert {each for each in SERVER if RULES[each].allowed & PROOF} == {Type.CHALLENGE}
    assert all(RULES[each].allowed & PROOF == PROOF for each in set(Type) - SERVER)


def test_only_answers_have_a_status_and_only_they_and_requests_have_a_body():
    assert {each for each in Type if 0 not in RULES[each].statuses} == {Type.REPLY, Type.ERROR}
    assert {each for each in Type if RULES[each].body} == {Type.REQUEST, Type.REPLY, Type.ERROR}


@pytest.mark.parametrize("kind", Type)
def test_a_flag_that_a_type_does_not_allow_is_an_error(kind):
    rule = RULES[kind]
    header = Header(
        type=kind, request_id=1, status=rule.statuses[0], reason=int(kind is Type.ERROR), total_length=2 * rule.body
    )
    check(header, rule.needed, rule)
    for bit in range(16):
        flags = rule.needed | 1 << bit
        if flags & ~rule.allowed:
            with pytest.raises(WireError, match="flags"):
                check(header, flags, rule)
        else:
            check(header, flags, rule)


def test_an_error_names_its_rule_apart_from_the_sentence():
    error = WireError("status", "7 in a message of type reply")
    assert (error.rule, str(error)) == ("status", "status: 7 in a message of type reply")


def test_a_changed_copy_is_what_dataclasses_would_make():
    header = Header(type=Type.REQUEST, request_id=7, model="m", cookie=bytes(16), total_length=3)
    changes = {"index": 1, "count": 2, "cookie": None, "remaining_us": 9}
    before = replace(header)
    assert changed(header, **changes) == replace(header, **changes)
    assert header == before
    with pytest.raises(TypeError):
        changed(header, colour="red")
