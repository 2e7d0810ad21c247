# SPDX-License-Identifier: Apache-2.0
"""Records of several workers are judged as if one had seen it all."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from qos.diagnosis import Diagnosis, judged
from qos.record import MOST_SAMPLES, Record, merged, thinned
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

CLASSES = [
    TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=0.05, queue_s=0.02),
    TrafficClass(name="batch", rank=1, dscp=10, deadline_s=30.0, queue_s=30.0),
]
NOW = 1000.0


@dataclass
class Over:
    """A finished request."""

    traffic_class: TrafficClass
    pool: str
    deadline: float
    streaming: bool = False


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 2),  # the worker that has it
        st.sampled_from(CLASSES),
        st.sampled_from(["p", "q"]),
        st.floats(0.001, 0.2),
        st.sampled_from(["ok", "deadline", "queue_full", "bad_request"]),
    ),
    max_size=60,
)


def see(diagnosis: Diagnosis, of: TrafficClass, pool: str, took: float, reason: str) -> None:
    timeline = Timeline(NOW, NOW, NOW + took / 4, NOW + took / 2, NOW + took)
    diagnosis.observe(Over(of, pool, NOW + of.deadline_s), timeline, reason)


@given(REQUESTS)
def test_what_many_saw_is_judged_as_what_one_would_have_seen(requests):
    alone, workers = Diagnosis(), [Diagnosis() for _ in range(3)]
    for worker, *request in requests:
        see(alone, *request)
        see(workers[worker], *request)
    told = [
        msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Record)
        for each in workers
        for record in each.records(NOW + 1)
    ]
    # Of refusals that are as many the first seen stand first, and who is first among several nobody knows.
    ours = [{each.reason: each for each in promise.refusals} for promise in map(judged, merged(told))]
    theirs = [{each.reason: each for each in promise.refusals} for promise in alone.promises(NOW + 1)]
    assert ours == theirs
    for one, other in zip(map(judged, merged(told)), alone.promises(NOW + 1), strict=True):
        assert (one.traffic_class, one.pool, one.kept, one.missed) == (
            other.traffic_class,
            other.pool,
            other.kept,
            other.missed,
        )
        assert (one.whole is None) == (other.whole is None)
        if one.whole is not None and other.whole is not None:
            assert (one.whole.median_s, one.whole.p99_s) == (other.whole.median_s, other.whole.p99_s)


@given(st.integers(1, 500), st.integers(1, MOST_SAMPLES))
def test_thinner_records_count_the_same_and_stand_for_all(count, most):
    diagnosis = Diagnosis()
    for _ in range(count):
        see(diagnosis, CLASSES[0], "p", 0.01, "ok")
    (record,) = diagnosis.records(NOW + 1)
    thin = thinned(record, most)
    (of,) = thin.slices
    assert len(of.kept.samples) <= most and of.kept.count == count
    assert abs(of.kept.stride * len(of.kept.samples) - count) <= of.kept.stride
    assert judged(thin).kept == count
    assert len(record.slices[0].kept.samples) <= MOST_SAMPLES  # the diagnosis's own is as it was
