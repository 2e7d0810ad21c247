# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest

from qos.traffic_class import ClassTable, TrafficClass, queue_priority


def traffic_class(name: str, rank: int) -> TrafficClass:
    return TrafficClass(name=name, rank=rank, dscp=0, deadline_s=1.0, queue_s=1.0)


def test_a_table_keeps_rank_order_and_finds_by_name():
    first, second = traffic_class("realtime", 0), traffic_class("batch", 1)
    table = ClassTable([first, second], second)
    assert list(table) == [first, second]
    assert len(table) == 2
    assert table.get("realtime") is first
    assert table.get("Realtime") is None
    assert table.default is second


def test_a_table_tells_its_order():
    first, second = traffic_class("realtime", 0), traffic_class("batch", 1)
    assert repr(ClassTable([first, second], second)) == "<ClassTable realtime > batch, default batch>"


def test_a_class_is_a_promise_nobody_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        traffic_class("realtime", 0).deadline_s = 2.0


@pytest.mark.parametrize(
    ("rank", "default_rank", "dscp", "priority"),
    [
        (0, 1, 46, 6),
        (0, 1, 1, 6),  # served before the default class, whatever its mark
        (1, 1, 18, 4),
        (2, 1, 10, 0),
        (3, 1, 1, 2),
        (3, 1, 8, 2),
        (0, 0, 1, 4),
    ],
)
def test_a_priority_keeps_the_order_in_three_bands(rank, default_rank, dscp, priority):
    assert queue_priority(rank, default_rank, dscp) == priority


def test_lower_classes_are_never_sent_first():
    # prio2band in net/sched/sch_generic.c, which is also fq's and prio's default.
    band = (1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
    bands = [band[queue_priority(rank, 1, dscp)] for rank, dscp in enumerate((46, 18, 10, 1))]
    assert bands == sorted(bands) == [0, 1, 1, 2]
