# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols.hints import parse_priority, parse_timeout


@pytest.mark.parametrize("urgency", range(8))
def test_an_urgency_is_read(urgency):
    assert parse_priority(b"u=%d" % urgency) == urgency


@pytest.mark.parametrize(
    ("field", "urgency"),
    [
        (b"u=1, i", 1),
        (b"i, u=1", 1),
        (b"u=1,i=?0", 1),
        (b"  u=1  ", 1),
        (b"u=1\t,\t i", 1),
        (b"u=1;later=?1;x", 1),
        (b"u=1, u=2", 2),
        (b"u=00", 0),
        (b'new="a, u=7 \\" ", u=2', 2),
        (b"new=(1 2.5 tok;a=1);b, u=2", 2),
        (b"new=(), u=2", 2),
        (b"new=:aGk=:, u=2", 2),
        (b"new=-1.5;u=3, u=2", 2),
        (b"*a-b.c_d, u=2", 2),
    ],
)
def test_other_members_are_passed_over(field, urgency):
    assert parse_priority(field) == urgency


@pytest.mark.parametrize(
    "field", [b"", b"i", b"new=1", b"u", b"u=?1", b"u=8", b"u=-1", b"u=1.0", b'u="1"', b"u=one", b"u=(1)", b"u=1, u=x"]
)
def test_without_an_urgency_in_range_nothing_was_asked(field):
    assert parse_priority(field) is None


@pytest.mark.parametrize(
    "field",
    [
        b"u=1,",
        b",u=1",
        b"u=1 i",
        b"u=1, U=2",
        b"U=1",
        b"u= 1",
        b"u=1;",
        b'u=1, a="',
        b"u=1, a=(1",
        b"u=1, \xff",
        b"1",
        b"u=1,, i",
    ],
)
def test_what_is_no_dictionary_is_ignored_as_a_whole(field):
    assert parse_priority(field) is None


@given(st.binary(max_size=60) | st.text(alphabet='ui=,;()"?:1a .\t\\', max_size=60).map(str.encode))
def test_any_bytes_are_an_urgency_or_none(field):
    assert parse_priority(field) in (None, *range(8))


KEYS = st.text(alphabet="abxyz*", min_size=1, max_size=3)
ITEMS = st.sampled_from(["1", "-2.5", "?0", '"u=7, "', "token/x", ":aGk=:", "(1 a)", "()"])
MEMBERS = st.tuples(KEYS, st.none() | ITEMS).map(lambda pair: pair[0] if pair[1] is None else "=".join(pair))


@given(st.lists(MEMBERS, max_size=4), st.lists(MEMBERS, max_size=4), st.integers(0, 7))
def test_an_urgency_is_found_among_any_members(before, after, urgency):
    field = ", ".join([*before, f"u={urgency}", *after])
    assert parse_priority(field.encode()) == urgency


@pytest.mark.parametrize(
    "field",
    [
        b"x=(" + b" " * 60_000 + b"!",
        b"x=(a" + b" " * 60_000,
        b"x=(" + b"a " * 30_000,
        b'x="' + b'\\"' * 30_000,
        b"a, " * 20_000,
    ],
)
def test_a_long_field_takes_no_long_time(field):
    # Each of these took seconds with a pattern that could match its spaces in two ways; the suite's timeout tells.
    assert parse_priority(field) is None


@pytest.mark.parametrize(("field", "seconds"), [(b"50ms", 0.05), (b"2s", 2.0), (b" 250us ", 0.00025), (b"1.5s", 1.5)])
def test_a_timeout_is_read(field, seconds):
    assert parse_timeout(field) == seconds


@pytest.mark.parametrize("field", [b"", b"50", b"50 ms", b"-1s", b"1e3s", b"\xff", b"nan", b"inf", b"1_0s"])
def test_what_is_no_timeout_is_refused_with_the_way_to_write_one(field):
    with pytest.raises(ValueError, match=r"no unit; write|write it as"):
        parse_timeout(field)


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="longer than 0"):
        parse_timeout(b"0ms")
