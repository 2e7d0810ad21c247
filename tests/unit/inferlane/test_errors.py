# SPDX-License-Identifier: Apache-2.0
"""Reasons keep their names, codes and statuses apart, and what a newer peer says is still understood."""

from __future__ import annotations

from inferlane.errors import Reason, Refused


def test_names_and_codes_are_unique_and_fit_the_wire() -> None:
    assert len({each.label for each in Reason}) == len({each.code for each in Reason}) == len(Reason)
    assert all(0 < each.code < 256 for each in Reason)
    assert all(400 <= each.status < 600 for each in Reason)


def test_reasons_are_found_by_code_and_name() -> None:
    for each in Reason:
        assert Reason.from_code(each.code) is each
        assert Reason.from_label(each.label) is each
    assert Reason.from_code(255) is Reason.INTERNAL
    assert Reason.from_label("news") is Reason.INTERNAL


def test_a_refusal_reads_as_its_reason_and_detail_and_a_backend_may_choose_the_status() -> None:
    refusal = Refused(Reason.BACKEND_FAILED, "connection refused", status=503)
    assert str(refusal) == "backend_failed: connection refused"
    assert (refusal.status, refusal.retry_after_s) == (503, None)
    assert Refused(Reason.DEADLINE).status == 504
    assert str(Refused(Reason.DEADLINE)) == "deadline"
