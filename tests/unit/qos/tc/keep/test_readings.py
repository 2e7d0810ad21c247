# SPDX-License-Identifier: Apache-2.0
"""Counts by class go on where the kernel's begin anew, and stand beside the rates that were promised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qos.tc.keep.readings import Readings
from qos.tc.kernel.statistics import Counters
from qos.tc.state import HtbClass, LinkState, NetworkState, TcClass

CLASS, QUEUE = 0x51A0016, 0x160000
LABELS = {("eth0", CLASS): "realtime", ("eth0", QUEUE): "realtime", ("ifb-eth0", CLASS): "realtime"}
PROMISED = TcClass(
    CLASS, 0x51A0001, HtbClass(rate=1000, ceil=5000, burst=1, cburst=1, prio=0, quantum=1500, overhead=0)
)
STATE = NetworkState(
    links=(
        LinkState(name="eth0", classes=(PROMISED,)),
        LinkState(name="ifb-eth0", ifb_for="eth0"),
        LinkState(name="eth1"),
    )
)


def test_what_passed_is_the_class_s_and_what_was_dropped_the_queue_s():
    readings = Readings()
    passed = Counters(bytes=100, packets=2, drops=1, borrows=1, backlog_bytes=7)
    readings.read("eth0", {CLASS: passed, QUEUE: Counters(bytes=90, drops=4), 0x51A0001: Counters(bytes=999)}, LABELS)
    egress, ingress = readings.of_interface("eth0", STATE, LABELS)
    assert (egress.name, egress.direction, egress.rate, egress.ceiling) == ("realtime", "egress", 1000, 5000)
    assert (egress.bytes, egress.packets, egress.drops, egress.borrows, egress.backlog_bytes) == (100, 2, 4, 1, 7)
    assert (ingress.direction, ingress.bytes, ingress.rate) == ("ingress", 0, None)
    assert readings.of_interface("eth1", STATE, LABELS) == []


@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), min_size=1, max_size=5))
def test_counts_only_grow_however_often_the_tree_is_made_anew(lives):
    """Each life is what one tree counted between two readings; a new tree counts from 0."""
    readings, total = Readings(), 0
    for life in lives:
        count = 0
        for grown in life:
            count += grown
            total += grown
            readings.read("eth0", {CLASS: Counters(bytes=count, backlog_bytes=count)}, LABELS)
            (egress, _) = readings.of_interface("eth0", STATE, LABELS)
            assert egress.backlog_bytes == count
            # A new object that has counted more than the old one cannot be told from it.
            assert egress.bytes <= total
    assert egress.bytes >= max(sum(life) for life in lives)


def test_a_class_that_gets_another_one_s_handle_begins_anew():
    readings = Readings()
    readings.read("eth0", {CLASS: Counters(bytes=1000, packets=10)}, LABELS)
    renamed = {("eth0", CLASS): "first"}
    readings.read("eth0", {CLASS: Counters(bytes=1100, packets=11)}, renamed)
    egress, _ = readings.of_interface("eth0", STATE, renamed | {("ifb-eth0", CLASS): "first"})
    assert (egress.name, egress.bytes, egress.packets) == ("first", 100, 1)
    readings.read("eth0", {CLASS: Counters(bytes=1105, packets=12)}, LABELS)
    assert readings.of_interface("eth0", STATE, LABELS)[0].bytes == 1005


def test_a_tree_made_anew_is_counted_on():
    readings = Readings()
    for counted in (50, 80, 10, 15):
        readings.read("eth0", {CLASS: Counters(bytes=counted, packets=counted)}, LABELS)
    (egress, _) = readings.of_interface("eth0", STATE, LABELS)
    assert (egress.bytes, egress.packets) == (95, 95)
    readings.read("eth0", {}, LABELS)
    assert readings.of_interface("eth0", STATE, LABELS)[0].bytes == 95
