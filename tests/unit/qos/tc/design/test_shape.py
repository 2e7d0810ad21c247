# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.tc.design.shape import Link, bfifo, byte_rate, fq_codel, htb_class, least_queue, longest_train

LINKS = st.builds(
    Link,
    rate=st.integers(1000, 50 * 10**9),
    mtu=st.integers(68, 9000),
    overhead=st.integers(0, 256),
    gso_max_size=st.integers(1514, 524_280),
)
PARTS = st.floats(0.001, 1)


def link(**given: int) -> Link:
    return Link(**({"rate": 2_500_000, "mtu": 1500, "overhead": 0, "gso_max_size": 65536} | given))


def test_a_class_at_20_mbit():
    shape = htb_class(link(), share=0.25, ceiling=1.0, prio=3)
    assert (shape.rate, shape.ceil, shape.prio) == (625_000, 2_500_000, 3)
    assert shape.burst * 64 == pytest.approx(1514 / 625_000 * 1e9, abs=64)  # one packet
    assert shape.cburst * 64 == pytest.approx(1e6, abs=64)  # one millisecond
    assert shape.quantum == 1514


@given(LINKS, PARTS, PARTS)
def test_whatever_the_link_a_class_is_one_that_the_kernel_can_keep(wire, share, ceiling):
    shape = htb_class(wire, share=share, ceiling=ceiling, prio=0)
    assert wire.packet / 60 < shape.rate <= shape.ceil  # HTB forgets what takes longer than a minute
    assert shape.rate <= max(wire.packet / 60 + 1, wire.rate)
    for rate, burst in ((shape.rate, shape.burst), (shape.ceil, shape.cburst)):
        assert burst < 2**32
        # A whole packet, at least.
        assert burst * 64 * rate >= min(wire.packet + wire.overhead, rate * 274) * 10**9
    assert wire.packet <= shape.quantum < 2**32


@pytest.mark.parametrize(("rate", "classes"), [(1000, 4), (125_000, 1000)])
def test_many_guarantees_on_a_slow_link_are_together_no_more_than_it_has(rate, classes):
    shape = htb_class(link(rate=rate), share=1 / classes, ceiling=1.0, prio=0)
    assert classes * shape.rate <= rate


@given(LINKS, PARTS, st.floats(0.001, 10))
def test_a_queue_is_its_time_and_holds_a_train(wire, share, queue_s):
    rate = int(wire.rate * share)
    limit = bfifo(wire, rate, queue_s).limit
    assert limit == min(max(int(rate * queue_s), least_queue(wire)), 2**32 - 1)
    assert limit >= 65536 + wire.packet


@given(LINKS, st.integers(1000, 10**9), st.floats(0.001, 10))
def test_fq_codel_never_wants_less_than_a_packets_time(wire, rate, queue_s):
    options = fq_codel(wire, rate, queue_s)
    assert options.target >= 1.5 * wire.packet / rate * 1e6 - 2
    assert options.target >= 5000 and options.interval >= 100_000
    assert options.interval >= options.target
    assert 64 <= options.limit <= 10240
    assert least_queue(wire) <= options.memory_limit < 2**32


@pytest.mark.parametrize(
    ("rate", "present", "ours", "size"),
    [
        (2_500_000, 65536, False, 1514),  # a packet is longer than half a millisecond
        (25_000_000, 65536, False, 12_500),
        (125_000_000, 65536, False, 62_500),
        (250_000_000, 65536, False, None),
        (25_000_000, 12_500, True, 12_500),  # as we left it
        (250_000_000, 12_500, True, 65536),  # as it may be again
        (250_000_000, 65536, True, None),
        (25_000_000, 9000, False, None),  # shorter than needed, and not ours
        (2_500_000_000, 524_280, False, None),
        (200_000_000, 524_280, False, 100_000),
    ],
)
def test_trains_are_half_a_millisecond_long(rate, present, ours, size):
    assert longest_train(link(rate=rate, gso_max_size=present), ours=ours) == size


@pytest.mark.parametrize(("bits", "size"), [(8_000, 1000), (1, 1000), (20_000_000, 2_500_000), (12_345_679, 1_543_209)])
def test_rates_are_whole_bytes(bits, size):
    assert byte_rate(bits) == size
