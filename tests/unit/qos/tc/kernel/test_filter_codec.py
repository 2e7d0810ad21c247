# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.tc.kernel.attributes import attribute, nested, nested_attributes, read_text, read_u32, text, u8, u32
from qos.tc.kernel.filter_codec import ALL_PROTOCOLS, Outside, decode_filter, encode_filter, filter_kind
from qos.tc.state import U32, Bpf, Flower, Redirect, UnreadFilter

IPV4, IPV6 = 0x0800, 0x86DD
WORDS = st.integers(0, 2**32 - 1)
KEYS = st.tuples(st.integers(0, 60), WORDS, WORDS).map(lambda key: (key[0], key[1] & key[2], key[2]))
PORTS = st.one_of(
    st.none(), st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda each: tuple(sorted(each)))
)


def networks(version: int) -> st.SearchStrategy[str]:
    bits = 32 if version == 4 else 128
    made = st.tuples(st.ip_addresses(v=version), st.integers(0, bits))
    return st.one_of(st.just(""), made.map(lambda each: str(ipaddress.ip_network(each, strict=False))))


def flowers(version: int) -> st.SearchStrategy[Flower]:
    return st.builds(
        Flower,
        classid=WORDS,
        dscp=st.one_of(st.none(), st.integers(0, 63)),
        ip_proto=st.sampled_from([6, 17]),
        src=networks(version),
        dst=networks(version),
        sport=PORTS,
        dport=PORTS,
    )


@given(st.builds(U32, st.lists(KEYS, min_size=1, max_size=8).map(tuple), st.integers(1, 2**32 - 1)))
def test_u32_is_read_as_sent(options):
    assert decode_filter("u32", encode_filter(options, IPV4, Outside()), IPV4, {}) == options


@given(flowers(4))
def test_flower_is_read_as_sent(options):
    assert decode_filter("flower", encode_filter(options, IPV4, Outside()), IPV4, {}) == options


@given(flowers(6))
def test_flower_is_read_as_sent_for_ipv6(options):
    assert decode_filter("flower", encode_filter(options, IPV6, Outside()), IPV6, {}) == options


@pytest.mark.parametrize("matchall", [True, False])
def test_a_redirect_names_its_device_by_index(matchall):
    outside = Outside(ifindex=7, matchall=matchall)
    sent = encode_filter(Redirect("ifb-eth0"), ALL_PROTOCOLS, outside)
    kind = filter_kind(Redirect("ifb-eth0"), outside)
    assert kind == ("matchall" if matchall else "u32")
    assert decode_filter(kind, sent, ALL_PROTOCOLS, {7: "ifb-eth0"}) == Redirect("ifb-eth0")
    assert decode_filter(kind, sent, ALL_PROTOCOLS, {}) == Redirect("")


def test_u32_compares_words_in_network_order():
    sent = nested_attributes(encode_filter(U32(((0, 46 << 18, 0x00FC0000),), 0x51A0016), IPV4, Outside()))
    assert sent[5] == bytes.fromhex("01 00 01 00 0000 0000 0000 0000 00000000 00fc0000 00b80000 00000000 00000000")
    assert read_u32(sent[1]) == 0x51A0016


def test_bpf_gives_the_descriptor_and_the_name_and_acts_directly():
    sent = nested_attributes(encode_filter(Bpf("inferlane-0123456789ab"), ALL_PROTOCOLS, Outside(fd=9)))
    assert (read_u32(sent[6]), read_text(sent[7]), read_u32(sent[8])) == (9, "inferlane-0123456789ab", 1)
    told = text(7, "ours") + u32(8, 1) + u32(9, 0) + attribute(10, b"tag12345") + u32(11, 33)
    assert decode_filter("bpf", told, ALL_PROTOCOLS, {}) == Bpf("ours")
    classifying = text(7, "theirs") + u32(3, 0x10001)
    assert decode_filter("bpf", classifying, ALL_PROTOCOLS, {}) == UnreadFilter("bpf", classifying)


def test_heads_and_hash_tables_are_no_filters():
    assert decode_filter("flower", None, IPV4, {}) is None
    assert decode_filter("u32", u32(4, 1), IPV4, {}) is None  # TCA_U32_DIVISOR


SELECTED = attribute(5, struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + struct.pack(">IIII", 0xFF, 1, 0, 0))


@pytest.mark.parametrize(
    "told",
    [
        SELECTED,  # to no class
        SELECTED + u32(1, 1) + u32(3, 0x80100000),  # linked to another table
        SELECTED + u32(1, 1) + text(8, "eth0"),  # from one device only
        SELECTED + u32(1, 1) + nested(7, nested(1, text(1, "gact"))),
        attribute(5, b"\0" * 16) + u32(1, 1),  # not terminal
        attribute(5, b"\x01\0\x02\0" + b"\0" * 12) + u32(1, 1),  # fewer keys than it says
        attribute(5, b"\x01\0\x01\0" + b"\0" * 12 + struct.pack(">IIII", 0xFF, 1, 0, 4)) + u32(1, 1),  # from a field
    ],
)
def test_an_u32_that_does_more_than_ours_is_not_read(told):
    assert decode_filter("u32", told, IPV4, {}) == UnreadFilter("u32", told)


FLOWER = u32(1, 5) + attribute(8, b"\x08\x00")


@pytest.mark.parametrize(
    "more",
    [
        u8(75, 1),  # IP_TTL
        u8(73, 4) + u8(74, 0xFF),  # the whole DS field
        attribute(10, bytes(4)) + attribute(11, b"\xff\x00\xff\x00"),  # a mask with holes
        u8(9, 17) + attribute(20, b"\0\x10") + attribute(37, b"\0\xf0"),  # some bits of a port
        attribute(8, b"\x86\xdd"),
    ],
)
def test_a_flower_that_says_more_than_ours_is_not_read(more):
    assert decode_filter("flower", FLOWER + more, IPV4, {}) == UnreadFilter("flower", FLOWER + more)


def test_flower_reports_where_it_runs_and_that_says_nothing():
    assert decode_filter("flower", FLOWER + u32(22, 8) + u32(86, 0), IPV4, {}) == Flower(classid=5)


@pytest.mark.parametrize(
    "told",
    [
        u32(1, 5),
        nested(2, nested(1, text(1, "gact"))),
        nested(2, nested(1, text(1, "mirred"), nested(2, attribute(2, bytes(28))))),  # a mirror, not a redirect
        nested(2),
    ],
)
def test_a_matchall_that_is_no_redirect_is_not_read(told):
    assert decode_filter("matchall", told, ALL_PROTOCOLS, {0: "lo"}) == UnreadFilter("matchall", told)


def test_a_strangers_filter_is_sent_as_it_came():
    assert encode_filter(UnreadFilter("fw", b"1234"), IPV4, Outside()) == b"1234"
    assert filter_kind(UnreadFilter("fw", None), Outside()) == "fw"
    assert filter_kind(Bpf("x"), Outside()) == "bpf"


def test_what_hardware_did_is_not_sent_back():
    told = u32(1, 5) + u32(11, 0x18) + attribute(5, b"12345678")  # NOT_IN_HW and VERBOSE
    assert encode_filter(UnreadFilter("u32", told), IPV4, Outside()) == u32(1, 5) + u32(11, 0x10) + told[-12:]
