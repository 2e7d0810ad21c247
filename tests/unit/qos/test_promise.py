# SPDX-License-Identifier: Apache-2.0
"""A timeline, taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason
from qos.promise import MISSED, PLACES, REFUSED, Part, spent
from qos.timeline import Timeline

WHOLE = {
    "received": 100.0,
    "queued": 100.001,
    "dispatched": 100.003,
    "first_byte": 100.013,
    "finished": 100.014,
    "rtt_s": 0.02,
    "compute_s": 0.006,
    "backend_queue_s": 0.003,
}


def took(*, streaming: bool = False, **stamps: float | None) -> dict[str, float]:
    return {part.value: s for part, s in spent(Timeline(**(WHOLE | stamps)), streaming=streaming).items()}


def test_every_part_of_an_answered_request():
    assert took() == pytest.approx(
        {
            "network": 0.02,
            "upload": 0.001,
            "queue": 0.002,
            "backend": 0.001,
            "backend_queue": 0.003,
            "compute": 0.006,
            "download": 0.001,
        }
    )


def test_a_token_stream_is_over_with_its_first_byte():
    assert "download" not in took(streaming=True)


NOT_REACHED = {"first_byte": None, "compute_s": None, "backend_queue_s": None, "rtt_s": None}


def test_the_part_in_which_it_ended_counts_up_to_its_end():
    assert took(**NOT_REACHED) == pytest.approx({"upload": 0.001, "queue": 0.002, "backend": 0.011})
    assert took(**NOT_REACHED, dispatched=None) == pytest.approx({"upload": 0.001, "queue": 0.013})
    assert took(**NOT_REACHED, dispatched=None, queued=None) == pytest.approx({"upload": 0.014})


def test_where_nobody_stamped_the_body_the_wait_began_at_once():
    assert took(queued=None)["queue"] == pytest.approx(0.003)
    assert "upload" not in took(queued=None)


def test_a_backend_that_reports_more_than_it_took_leaves_nothing_negative():
    assert (took(compute_s=9.0)["backend"], took(compute_s=9.0)["compute"]) == (0.0, pytest.approx(0.01))


stamps = st.one_of(st.none(), st.floats(0, 10))


@given(st.builds(Timeline, st.floats(0, 10), stamps, stamps, stamps, stamps, stamps, stamps, stamps), st.booleans())
def test_no_part_of_any_timeline_is_negative(timeline, streaming):
    assert all(seconds >= 0 for seconds in spent(timeline, streaming=streaming).values())


@given(st.lists(st.floats(0, 10), min_size=5, max_size=5).map(sorted), st.integers(1, 5), stamps, stamps)
def test_the_parts_of_a_request_add_up_to_its_time_wherever_it_ended(instants, reached, compute_s, waited_s):
    """Whatever its backend tells of itself."""
    stamps = [*instants[:reached], *[None] * (4 - reached)][:4]
    timeline = Timeline(*stamps, finished=instants[-1], compute_s=compute_s, backend_queue_s=waited_s)
    assert sum(spent(timeline).values()) == pytest.approx(instants[-1] - instants[0])


def test_every_reason_is_the_gateway_s_or_the_client_s():
    assert not MISSED & REFUSED
    assert PLACES.keys() == MISSED | REFUSED
    clients = {each.label for each in Reason} - PLACES.keys()
    assert clients == {each.label for each in Reason if 400 <= each.status < 429 or each.status in (431, 499)}


def test_parts_can_be_looked_up():
    assert {Part.QUEUE: 1}[Part("queue")] == 1
