# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason
from inferlane.transports.problems import read_problem

FULL = b'{"reason": "queue_full", "detail": "come back", "error": "e", "retry_after_ms": 250, "status": 503}'


def test_a_problem_document_says_everything():
    refusal = read_problem(503, FULL, retry_after_s=1.0)

    assert (refusal.reason, refusal.detail, refusal.status) == (Reason.QUEUE_FULL, "come back", 503)
    assert refusal.retry_after_s == 0.25  # exact, where the head has whole seconds


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, Reason.BAD_REQUEST),
        (404, Reason.NOT_FOUND),
        (418, Reason.BAD_REQUEST),
        (429, Reason.QUEUE_FULL),
        (502, Reason.BACKEND_FAILED),
        (503, Reason.NO_ENDPOINT),
        (504, Reason.DEADLINE),
        (500, Reason.INTERNAL),
        (302, Reason.INTERNAL),
    ],
)
def test_another_servers_error_is_told_by_its_status(status, reason):
    refusal = read_problem(status, b'{"error": "no such model"}', retry_after_s=2.0)

    assert (refusal.reason, refusal.detail, refusal.retry_after_s) == (reason, "no such model", 2.0)
    assert refusal.status == status


@pytest.mark.parametrize("body", [b"plain text\n", b'"plain text"', b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_document_becomes_the_detail(body):
    refusal = read_problem(500, body)

    assert refusal.detail == body.decode("utf-8", "replace").strip()[:2000]


@pytest.mark.parametrize("retry", [b"true", b"-1", b'"soon"', b"null"])
def test_a_retry_that_is_no_time_is_left_out(retry):
    assert read_problem(503, b'{"retry_after_ms": %s}' % retry).retry_after_s is None


@given(st.integers(300, 599), st.binary(max_size=200))
def test_any_bytes_are_a_refusal(status, body):
    assert read_problem(status, body).status == status
