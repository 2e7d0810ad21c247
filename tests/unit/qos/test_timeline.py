# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.timeline import Parts, Timeline


def test_a_request_that_was_only_received_has_no_parts():
    assert Timeline(received=5.0).parts() == Parts(None, None, None, None)


def test_a_request_that_waits_for_its_backend_has_a_queue_part_only():
    assert Timeline(received=5.0, dispatched=5.25).parts() == Parts(None, 0.25, None, None)


def test_the_client_s_upload_is_no_queue_of_ours():
    assert Timeline(received=5.0, queued=7.0, dispatched=7.25).parts() == Parts(None, 0.25, None, None, upload=2.0)


def test_compute_is_taken_out_of_backend():
    timeline = Timeline(received=5.0, dispatched=5.25, first_byte=6.25, finished=7.0, rtt_s=0.5, compute_s=0.75)
    assert timeline.parts() == Parts(network=0.5, queue=0.25, backend=0.25, compute=0.75, download=0.75)


def test_without_a_compute_time_all_is_backend():
    assert Timeline(received=0.0, dispatched=1.0, first_byte=3.0).parts() == Parts(None, 1.0, 2.0, None)


def test_a_backend_that_claims_more_compute_than_there_was_time_leaves_no_negative_part():
    assert Timeline(received=0.0, dispatched=1.0, first_byte=2.0, compute_s=9.0).parts().backend == 0.0


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), st.floats(0, 1))
def test_the_parts_are_disjoint_and_add_up_to_the_first_byte(instants, share):
    received, dispatched, first_byte = sorted(instants)
    compute = (first_byte - dispatched) * share
    parts = Timeline(received=received, dispatched=dispatched, first_byte=first_byte, compute_s=compute).parts()
    assert parts.queue is not None
    assert parts.backend is not None
    assert parts.queue >= 0
    assert parts.queue + parts.backend + compute == pytest.approx(first_byte - received)
