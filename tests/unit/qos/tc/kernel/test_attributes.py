# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qos.tc.kernel.attributes import (
    attribute,
    attribute_pairs,
    nested,
    nested_attributes,
    read_text,
    read_u16,
    read_u32,
    read_u64,
    text,
    u8,
    u16,
    u32,
    u64,
)

KINDS = st.integers(0, 0x3FFF)


def test_an_attribute_is_its_length_its_type_and_its_value_padded_to_four():
    assert attribute(3, b"abc") == b"\x07\x00\x03\x00abc\0"


def test_a_nested_one_is_marked_so_and_read_without_the_mark():
    assert nested(2, u8(1, 5))[:4] == b"\x0c\x00\x02\x80"
    assert nested_attributes(nested_attributes(nested(2, u8(1, 5)))[2]) == {1: b"\x05"}


@given(st.lists(st.tuples(KINDS, st.binary(max_size=70))))
def test_what_is_written_is_read(pairs):
    assert attribute_pairs(b"".join(attribute(*each) for each in pairs)) == pairs


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(data):
    assert all(len(value) <= len(data) - 4 for _, value in attribute_pairs(data))


@given(st.lists(st.tuples(KINDS, st.binary(max_size=20)), min_size=1, max_size=5), st.integers(1, 3))
def test_what_is_cut_short_ends_the_list(pairs, cut):
    whole = b"".join(attribute(kind, value + b"....") for kind, value in pairs)
    assert len(attribute_pairs(whole[: -cut - 3])) == len(pairs) - 1


def test_numbers_and_strings_are_read_as_written():
    found = nested_attributes(u8(1, 255) + u16(2, 65535) + u32(3, 2**32 - 1) + u64(4, 2**64 - 1) + text(5, "eth0"))
    assert found[1] == b"\xff"
    assert read_u16(found[2]) == 65535
    assert read_u32(found[3]) == 2**32 - 1
    assert read_u64(found[4]) == 2**64 - 1
    assert read_text(found[5]) == "eth0"


def test_what_is_missing_or_too_short_is_what_was_said_instead():
    assert nested_attributes(None) == {}
    assert read_u32(None, 7) == 7
    assert read_u64(b"1234", 7) == 7
    assert read_text(None) == ""
