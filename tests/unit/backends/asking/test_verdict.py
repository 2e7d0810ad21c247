# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.asking.verdict import may_retry, outcome_of, retry_after_s
from backends.messages import Fields, Reply
from backends.outcome import Ending, Outcome
from inferlane.errors import Reason, Refused

NEITHER_LATER = {"dispatched": 10.0, "first_byte": None, "now": 10.5, "deadline": 11.0}


def outcome(result: Reply | BaseException, **instants: float | None) -> Outcome:
    return outcome_of(result, **{**NEITHER_LATER, **instants})


def reply(status: int, *fields: tuple[bytes, bytes]) -> Reply:
    return Reply(status=status, body=b"", fields=fields)


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (200, Ending.ANSWERED),
        (304, Ending.ANSWERED),
        (400, Ending.BLAMELESS),
        (404, Ending.BLAMELESS),
        (429, Ending.FAILED),
        (500, Ending.FAILED),
        (501, Ending.BLAMELESS),
        (502, Ending.FAILED),
        (503, Ending.FAILED),
        (504, Ending.FAILED),
        (505, Ending.BLAMELESS),
    ],
)
def test_a_status_says_whose_fault_it_was_and_only_an_endpoints_own_is_tried_elsewhere(status, ending):
    found = outcome(reply(status))
    assert found.ending is ending
    assert may_retry(reply(status), found.ending) is (ending is Ending.FAILED)


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        (Reason.BACKEND_FAILED, Ending.FAILED),
        (Reason.STALLED, Ending.FAILED),
        (Reason.INTERNAL, Ending.FAILED),
        (Reason.NO_ENDPOINT, Ending.FAILED),
        (Reason.QUEUE_FULL, Ending.FAILED),
        (Reason.DEADLINE, Ending.TIMED_OUT),
        (Reason.TOO_LATE, Ending.BLAMELESS),
        (Reason.CANCELLED, Ending.CANCELLED),
        (Reason.BAD_REQUEST, Ending.BLAMELESS),
        (Reason.UNKNOWN_MODEL, Ending.BLAMELESS),
        (Reason.TOO_LARGE, Ending.BLAMELESS),
    ],
)
def test_so_does_a_refusal(reason, ending):
    refusal = Refused(reason)
    assert outcome(refusal).ending is ending
    assert may_retry(refusal, ending) is (ending is Ending.FAILED)


def test_a_cancellation_is_the_deadlines_once_that_has_passed_and_the_clients_before():
    assert outcome(asyncio.CancelledError()).ending is Ending.CANCELLED
    assert outcome(asyncio.CancelledError(), now=11.0).ending is Ending.TIMED_OUT
    assert outcome(asyncio.CancelledError(), now=10.999).ending is Ending.TIMED_OUT  # a loop that fires early
    assert outcome(TimeoutError()).ending is Ending.TIMED_OUT


def test_a_fault_of_ours_counts_against_the_endpoint_but_is_not_repeated():
    found = outcome(ValueError("a bug"))
    assert found.ending is Ending.FAILED
    assert not may_retry(ValueError("a bug"), found.ending)


def test_latency_is_until_the_first_byte_where_there_was_one():
    assert outcome(reply(200), first_byte=10.2) == Outcome(
        ending=Ending.ANSWERED, latency_s=pytest.approx(0.2), held_s=0.5
    )
    assert outcome(asyncio.CancelledError()).latency_s == 0.5


def test_a_clock_that_steps_back_makes_no_time_negative():
    found = outcome(reply(200), first_byte=9.0, now=8.0)
    assert (found.latency_s, found.held_s) == (0.0, 0.0)


def test_what_a_failure_says_of_coming_back_is_kept():
    assert outcome(reply(503, (b"retry-after", b"7"))).retry_after_s == 7.0
    assert outcome(reply(200, (b"retry-after", b"7"))).retry_after_s is None
    assert outcome(Refused(Reason.BACKEND_FAILED, retry_after_s=3.0)).retry_after_s == 3.0
    assert outcome(Refused(Reason.TOO_LATE, retry_after_s=3.0)).retry_after_s is None


DATE = b"Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        (((b"retry-after", b"120"),), 120.0),
        (((b"retry-after", b" 0 "),), 0.0),
        (((b"retry-after", b"9" * 40),), 999999999.0),
        (((b"date", DATE), (b"retry-after", b"Wed, 21 Oct 2026 07:28:30 GMT")), 30.0),
        (((b"date", DATE), (b"retry-after", b"Wed, 21 Oct 2026 07:27:30 GMT")), 0.0),
        (((b"date", DATE), (b"retry-after", b"Wed, 21 Oct 2026 07:28:30 -0000")), 30.0),
        (((b"retry-after", DATE),), None),
        (((b"date", b"today"), (b"retry-after", DATE)), None),
        (((b"retry-after", b"-5"),), None),
        (((b"retry-after", b"soon"),), None),
        (((b"retry-after", b"\xff"),), None),
        ((), None),
    ],
)
def test_retry_after_is_seconds_or_a_date_beside_the_replys_own(fields: Fields, seconds: float | None):
    assert retry_after_s(fields) == seconds


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_whatever_a_backend_writes_there_is_never_an_error(wanted: bytes, date: bytes):
    found = retry_after_s(((b"date", date), (b"retry-after", wanted)))
    assert found is None or found >= 0
