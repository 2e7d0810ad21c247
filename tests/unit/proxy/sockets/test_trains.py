# SPDX-License-Identifier: Apache-2.0
"""Trains hold every datagram once and in order, in a shape that the kernel cuts as it was, and are short in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sockets.trains import MOST_BYTES, MOST_SEGMENTS, UNKNOWN_RATE_SEGMENTS, train_segments, trains

RATES = st.none() | st.floats(1e3, 1e12)


@given(st.lists(st.sampled_from([0, 1, 50, 1199, 1200, 1452, 9000]), max_size=200), RATES)
def test_each_datagram_goes_once_in_a_shape_that_can_be_cut(sizes, slowest_bps):
    datagrams = [index.to_bytes(1) * size for index, size in enumerate(sizes)]
    found = [list(train) for train in trains(datagrams, slowest_bps)]
    assert [datagram for train in found for datagram in train] == datagrams
    for train in found:
        size = len(train[0])
        cut = b"".join(train)
        assert [cut[start : start + size] for start in range(0, len(cut), size or 1)] == train or train == [b""]
        assert len(train) <= max(1, train_segments(size, slowest_bps))
        assert len(train) <= MOST_SEGMENTS
        assert len(cut) <= MOST_BYTES


@given(st.integers(0, 65_507), RATES)
def test_a_train_is_never_empty_and_never_too_long(packet_bytes, slowest_bps):
    segments = train_segments(packet_bytes, slowest_bps)
    assert 1 <= segments <= MOST_SEGMENTS
    assert segments * packet_bytes <= MOST_BYTES
    if slowest_bps is not None and segments > 1:
        assert segments * packet_bytes * 8 / slowest_bps <= 0.5e-3


@pytest.mark.parametrize(
    ("slowest_bps", "segments"),
    [(20e6, 1), (50e6, 2), (100e6, 4), (1e9, 49), (10e9, 54), (None, UNKNOWN_RATE_SEGMENTS)],
)
def test_half_a_millisecond_of_full_packets(slowest_bps, segments):
    assert train_segments(1200, slowest_bps) == segments


def test_only_the_last_of_a_train_may_be_shorter():
    longer, shorter = b"l" * 1200, b"s" * 700
    assert list(trains([longer, longer, shorter, shorter, longer], 1e9)) == [
        [longer, longer, shorter],
        [shorter],
        [longer],
    ]
