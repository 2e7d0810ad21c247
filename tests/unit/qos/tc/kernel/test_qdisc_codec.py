# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.tc.kernel.attributes import attribute, nested_attributes, read_u32, u32
from qos.tc.kernel.qdisc_codec import (
    canonical,
    class_kind,
    decode_class,
    decode_qdisc,
    encode_class,
    encode_qdisc,
    qdisc_kind,
)
from qos.tc.state import Bfifo, Cake, Clsact, Ets, Fq, FqCodel, Htb, HtbClass, Unread, UnreadClass

WORDS = st.integers(0, 2**32 - 1)
RATES = st.integers(1, 2**40)
BANDS = st.tuples(*[st.integers(0, 2)] * 16)
QDISCS = st.one_of(
    st.builds(Htb, st.integers(0, 0xFFFF)),
    st.builds(Bfifo, WORDS),
    st.builds(Cake, bandwidth=RATES, diffserv=st.integers(0, 4), overhead=st.integers(0, 256)),
    st.builds(
        Ets,
        bands=st.integers(1, 16),
        strict=st.integers(0, 16),
        quanta=st.lists(WORDS, max_size=16).map(tuple),
        priomap=st.one_of(st.just(()), BANDS),
    ),
    st.builds(Fq, limit=WORDS, flow_limit=WORDS, priomap=st.one_of(st.just(()), BANDS)),
    st.just(Clsact()),
    st.builds(Unread, st.sampled_from(["tbf", "sfq", "prio"]), st.one_of(st.none(), st.binary())),
)
FQ_CODELS = st.builds(
    FqCodel,
    limit=WORDS,
    target=st.integers(0, 2**22),
    interval=st.integers(0, 2**22),
    quantum=st.integers(256, 2**20),
    memory_limit=st.integers(0, 2**31),
    ecn=st.booleans(),
)
CLASSES = st.builds(
    HtbClass,
    rate=RATES,
    ceil=RATES,
    burst=WORDS,
    cburst=WORDS,
    prio=st.integers(0, 7),
    quantum=st.integers(1, 2**31 - 1),
    overhead=st.integers(0, 256),
)


@given(QDISCS)
def test_what_is_sent_is_what_is_read(options):
    assert decode_qdisc(qdisc_kind(options), encode_qdisc(options)) == options


@given(CLASSES)
def test_a_class_is_read_as_it_was_sent(options):
    assert decode_class(class_kind(options), encode_class(options)) == options


def told_by_fq_codel(sent: bytes) -> bytes:
    """As fq_codel_change() and fq_codel_dump() in net/sched/sch_fq_codel.c treat times."""
    found = nested_attributes(sent)
    for kind in (1, 3):  # TARGET, INTERVAL
        units = read_u32(found[kind]) * 1000 >> 10
        found[kind] = struct.pack("=I", (units << 10) // 1000)
    return b"".join(attribute(kind, value) for kind, value in found.items()) + u32(5, 1024)


@given(FQ_CODELS)
def test_fq_codel_tells_the_canonical_times(options):
    told = decode_qdisc("fq_codel", told_by_fq_codel(encode_qdisc(options)))
    assert told == canonical(options)
    assert canonical(told) == told
    assert told.target - options.target in (0, 1)


@given(FQ_CODELS)
def test_the_options_of_a_strangers_fq_codel_come_back_as_they_were(options):
    told = told_by_fq_codel(encode_qdisc(options))
    assert told_by_fq_codel(encode_qdisc(Unread("fq_codel", told))) == told + u32(5, 1024)


def test_the_usual_times_are_canonical():
    usual = FqCodel(limit=1000, target=5000, interval=100_000, quantum=1514, memory_limit=2**20)
    assert canonical(usual) == usual
    assert canonical(msgspec.structs.replace(usual, quantum=100)).quantum == 256
    assert canonical(Bfifo(1)) == Bfifo(1)
    assert canonical(Ets(bands=2, strict=0, quanta=(1, 257), priomap=())).quanta == (256, 257)


def test_a_rate_that_32_bits_do_not_hold_goes_beside():
    wide = HtbClass(rate=5 * 10**9, ceil=2**32 - 1, burst=1, cburst=2, prio=0, quantum=1514)
    found = nested_attributes(encode_class(wide))
    assert found.keys() == {1, 6}  # TCA_HTB_PARMS, TCA_HTB_RATE64
    assert struct.unpack_from("=8xI", found[1])[0] == 2**32 - 1
    assert decode_class("htb", encode_class(wide)) == wide


def test_a_class_with_children_has_no_prio():
    options = HtbClass(rate=1, ceil=1, burst=1, cburst=1, prio=3, quantum=1514)
    parameters = bytearray(nested_attributes(encode_class(options))[1])
    struct.pack_into("=I", parameters, 36, 1)  # level
    assert decode_class("htb", attribute(1, bytes(parameters))) == msgspec.structs.replace(options, prio=0)


@pytest.mark.parametrize(("place", "value"), [(1, 2), (8, 64), (14, 9)])  # linklayer, mpu of rate; overhead of ceil
def test_a_class_that_says_more_than_ours_is_not_read(place, value):
    ours = HtbClass(rate=1000, ceil=1000, burst=1, cburst=1, prio=3, quantum=1514)
    parameters = bytearray(nested_attributes(encode_class(ours))[1])
    struct.pack_into("=B", parameters, place - (place == 8) * 2, value)
    told = attribute(1, bytes(parameters))
    assert decode_class("htb", told) == UnreadClass("htb", told)


def test_what_somebody_set_beside_our_options_makes_a_difference():
    ours = encode_qdisc(FqCodel(limit=1, target=5000, interval=100_000, quantum=300, memory_limit=1))
    for more in (u32(5, 64), u32(7, 1000)):  # FLOWS, CE_THRESHOLD
        assert decode_qdisc("fq_codel", ours + more) == Unread("fq_codel", ours + more)
    cake = encode_qdisc(Cake(bandwidth=1, diffserv=1, overhead=0))
    for more in (u32(13, 1), u32(11, 1), u32(12, 0)):  # WASH, NAT, RAW
        assert decode_qdisc("cake", cake + more) == Unread("cake", cake + more)


def test_a_strangers_htb_is_given_back_with_the_version_that_the_kernel_takes():
    told = attribute(2, struct.pack("=5I", 0x30011, 10, 0x20, 0, 77)) + u32(5, 1000)
    sent = nested_attributes(encode_qdisc(Unread("htb", told)))
    assert struct.unpack("=5I", sent[2]) == (3, 10, 0x20, 0, 77)
    assert sent[5] == u32(5, 1000)[4:]


@pytest.mark.parametrize("kind", ["htb", "bfifo", "ets"])
def test_what_is_too_short_is_kept_unread(kind):
    assert decode_qdisc(kind, b"") == Unread(kind, b"")
    assert decode_qdisc(kind, None) == Unread(kind, None)


def test_a_class_of_another_kind_is_kept_and_sent_as_it_came():
    assert decode_class("hfsc", b"12345678") == UnreadClass("hfsc", b"12345678")
    assert encode_class(UnreadClass("hfsc", b"12345678")) == b"12345678"
    assert class_kind(UnreadClass("hfsc", None)) == "hfsc"
