# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest

from qos.traffic_class import ClassTable, TrafficClass


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
