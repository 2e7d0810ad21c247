# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from qos.tc.kernel.attributes import attribute, u32, u64
from qos.tc.kernel.statistics import Counters, grown, parse_counters

SMALL = st.integers(0, 2**32 - 1)
BEFORE = st.builds(Counters, bytes=SMALL, packets=SMALL, drops=SMALL, overlimits=SMALL, lends=SMALL, borrows=SMALL)
MORE = st.integers(0, 2**32 - 1)


def told(basic: bytes, queue: bytes, more: bytes = b"") -> bytes:
    return attribute(1, basic) + attribute(3, queue) + more


def test_counters_are_read_from_what_the_kernel_tells():
    stats = told(struct.pack("=QIxxxx", 10**12, 5), struct.pack("=5I", 3, 4500, 7, 9, 11))
    expected = Counters(bytes=10**12, packets=5, drops=7, overlimits=11, backlog_bytes=4500, backlog_packets=3)
    assert parse_counters("bfifo", stats, of_class=False) == expected


def test_packets_of_more_than_32_bits_stand_beside():
    stats = told(struct.pack("=QI", 1, 5), bytes(20), u64(8, 2**32 + 5))
    assert parse_counters("htb", stats, of_class=True).packets == 2**32 + 5


def test_only_a_class_of_htb_lends_and_borrows():
    stats = attribute(4, struct.pack("=5I", 20, 30, 0, 0, 0))
    assert parse_counters("htb", stats, of_class=True) == Counters(lends=20, borrows=30)
    assert parse_counters("htb", stats, of_class=False) == Counters()
    assert parse_counters("fq_codel", stats, of_class=True) == Counters()


def test_nothing_told_is_nothing_counted():
    assert parse_counters("htb", None, of_class=True) == Counters()
    assert parse_counters("htb", u32(1, 3), of_class=True) == Counters()


@given(BEFORE, MORE, MORE, MORE)
def test_what_wrapped_is_counted_on(before, more_bytes, drops, borrows):
    now = Counters(
        bytes=before.bytes + more_bytes,
        packets=before.packets,
        drops=(before.drops + drops) % 2**32,
        overlimits=before.overlimits,
        backlog_bytes=8,
        backlog_packets=1,
        lends=before.lends,
        borrows=(before.borrows + borrows) % 2**32,
    )
    expected = Counters(bytes=more_bytes, drops=drops, borrows=borrows, backlog_bytes=8, backlog_packets=1)
    assert grown(before, now) == expected


@given(BEFORE, SMALL)
def test_fewer_bytes_are_those_of_a_new_object(before, octets):
    now = Counters(bytes=octets, packets=3, drops=1)
    assert grown(None, now) == now
    if octets < before.bytes:
        assert grown(before, now) == now
