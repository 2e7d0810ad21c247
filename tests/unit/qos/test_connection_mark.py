# SPDX-License-Identifier: Apache-2.0
"""A connection's mark: the first request's, one rise at most, and no fall."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qos.connection_mark import ConnectionMark
from qos.traffic_class import TrafficClass

CLASSES = [
    TrafficClass(name=name, rank=rank, dscp=dscp, deadline_s=1.0, queue_s=1.0)
    for rank, (name, dscp) in enumerate({"realtime": 46, "interactive": 18, "batch": 10, "background": 1}.items())
]
REALTIME, INTERACTIVE, BATCH, BACKGROUND = CLASSES
ranks = {each.name: each.rank for each in CLASSES}


def carried(*requests: TrafficClass) -> list[str | None]:
    mark = ConnectionMark()
    found = [mark.carried]
    for each in requests:
        mark.request(each, ranks.__getitem__)
        found.append(mark.carried)
    return found


def test_before_the_first_request_it_is_the_listener_s_and_then_that_request_s() -> None:
    assert carried(BACKGROUND) == [None, "background"]


def test_it_rises_once() -> None:
    assert carried(BACKGROUND, BATCH, REALTIME) == [None, "background", "batch", "batch"]


def test_it_never_falls() -> None:
    assert carried(REALTIME, BACKGROUND, BATCH) == [None, "realtime", "realtime", "realtime"]
    assert carried(BATCH, BACKGROUND, REALTIME) == [None, "batch", "batch", "realtime"]


def test_a_reload_s_ranks_count() -> None:
    mark = ConnectionMark()
    mark.request(BATCH, ranks.__getitem__)
    mark.request(BACKGROUND, {"batch": 9}.__getitem__)
    assert mark.carried == "background"


@given(st.lists(st.sampled_from(CLASSES), min_size=1))
def test_whatever_comes_it_changes_twice_at_most_and_only_upwards(requests: list[TrafficClass]) -> None:
    seen = [name for name in carried(*requests) if name is not None]
    changes = [(before, after) for before, after in pairwise(seen) if before != after]
    assert seen[0] == requests[0].name
    assert len(changes) <= 1
    assert all(ranks[after] < ranks[before] for before, after in changes)
