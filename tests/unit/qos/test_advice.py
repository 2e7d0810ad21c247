# SPDX-License-Identifier: Apache-2.0
"""The sentences, for promises that are given."""

from __future__ import annotations

import pytest

from qos.advice import advice
from qos.promise import HURRIED, REFUSED, Breach, Part, Promise, Refusals, Spent

KEPT = {
    "traffic_class": "realtime",
    "pool": "magika",
    "deadline_s": 0.05,
    "kept": 1000,
    "missed": 0,
    "refused": 0,
    "holds": True,
    "whole": Spent(median_s=0.003, p99_s=0.01, share=1.0),
    "parts": {Part.COMPUTE: Spent(median_s=0.002, p99_s=0.004, share=0.7)},
    "breaches": [],
    "refusals": [],
}


def words(**changes: object) -> list[str]:
    return advice(Promise(**(KEPT | changes)))


def broken_by(part: Part, *, share: float = 1.0, usual_s: float = 0.0003, **changes: object) -> list[str]:
    breach = Breach(part=part, share=share, median_s=0.046, usual_s=usual_s)
    return words(**({"missed": 30, "holds": False, "breaches": [breach]} | changes))


def test_a_promise_that_holds_is_one_sentence():
    assert words() == [
        "realtime in pool magika keeps its 50ms: 1000 of 1000 requests in time; "
        "70% of the time is the model's own computing, 2 ms in the median."
    ]


def test_a_broken_one_says_how_many_why_and_what_to_change():
    verdict, why = broken_by(Part.QUEUE, share=0.92)
    assert verdict.startswith(
        "realtime in pool magika breaks its 50ms: 1000 of 1030 requests in time, 30 missed it (2.9%)"
    )
    assert why == (
        "92% of those that missed did so because waiting here for a place took 46 ms instead of 300 us: "
        "add endpoints to pools[magika].endpoints or raise their slots if they can run more at once; "
        "if other classes hold the places, raise classes[realtime].gate.share."
    )


def test_what_is_usual_is_not_told_as_unusual():
    assert "took 46 ms:" in broken_by(Part.COMPUTE, usual_s=0.045)[1]


@pytest.mark.parametrize("part", Part)
def test_every_part_has_a_remedy_that_names_a_key_of_the_config(part):
    told = broken_by(part)[1]
    assert "classes[realtime]." in told or "pools[magika].endpoints" in told
    assert "{" not in told


def test_a_backend_that_does_not_tell_its_compute_time_is_not_said_to_be_slow_on_the_wire():
    told = broken_by(Part.BACKEND, parts={})[1]
    assert "does not say how long its model takes" in told
    assert "does not say" not in broken_by(Part.BACKEND)[1]


def test_a_small_breach_is_not_worth_a_sentence():
    assert len(broken_by(Part.DOWNLOAD, share=0.05)) == 1


@pytest.mark.parametrize("reason", sorted(REFUSED))
def test_every_refusal_that_is_ours_has_its_sentence(reason):
    refusals = [Refusals(reason=reason, place="gate", count=7), Refusals(reason="bad_request", place="client", count=9)]
    told = words(refused=7, holds=False, refusals=refusals)
    assert "7 refused (0.7%)" in told[0]
    assert told[1].startswith(f"7 refused with {reason}: ")
    assert "{" not in told[1]
    assert len(told) == 2


def test_clients_in_a_hurry_are_told_of_even_where_the_promise_holds():
    told = words(refusals=[Refusals(reason=HURRIED, place="client", count=3)])
    assert told[1].startswith("3 missed a deadline that their client had set, shorter than the 50ms of class realtime")


def test_where_no_pool_was_reached_none_is_named():
    told = words(pool="", kept=0, refused=2, holds=False, whole=None, parts={})
    assert told[0].startswith("realtime, in no pool, breaks its 50ms: 0 of 2 requests in time, 2 refused (100.0%).")


def test_mistakes_of_clients_alone_are_no_verdict():
    assert words(kept=0, refusals=[Refusals(reason="bad_request", place="client", count=9)]) == []
