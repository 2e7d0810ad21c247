# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from inferlane.tensors import (
    DATATYPES,
    OipError,
    array_from_binary,
    array_from_json,
    binary_from_array,
    datatype_of,
    json_from_array,
    shape_text,
)

NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(value if isinstance(value, bytes) else msgspec.json.encode(value))


def same_bits(one, other):
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


@given(
    st.sampled_from(NUMBERS).flatmap(lambda name: nps.arrays(DATATYPES[name], nps.array_shapes(min_dims=0, min_side=0)))
)
def test_numbers_survive_as_binary_data_to_the_bit(array):
    buffer, size = binary_from_array(datatype_of(array), array)
    data = b"".join([buffer])
    assert len(data) == size
    assert same_bits(array_from_binary(datatype_of(array), array.shape, data, 0, size), array)


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_bytes_survive_as_binary_data(elements):
    array = np.array([*elements, None], object)[:-1]
    data, size = binary_from_array("BYTES", array)
    assert array_from_binary("BYTES", [len(elements)], bytes(data), 0, size).tolist() == elements


@given(st.data())
def test_what_json_can_carry_survives_as_json_to_the_bit(data):
    name = data.draw(st.sampled_from([name for name in NUMBERS if name != "FP16"]))
    floats = {"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else None
    array = data.draw(nps.arrays(DATATYPES[name], nps.array_shapes(min_side=0), elements=floats))
    flat = raw(json_from_array(name, array, remedy=""))
    assert same_bits(array_from_json(name, array.shape, flat), array)
    if array.size:  # an empty array's nesting does not tell its shape
        assert same_bits(array_from_json(name, array.shape, raw(array.tolist())), array)


@given(st.lists(st.text(max_size=5), max_size=5))
def test_text_survives_as_json(texts):
    array = array_from_json("BYTES", [len(texts)], raw(texts))
    assert [each.decode() for each in array] == texts
    assert json_from_array("BYTES", array, remedy="") == texts


def test_binary_numbers_are_a_view_into_the_body():
    body = b"head" + np.arange(6, dtype="<f4").tobytes()
    array = array_from_binary("FP32", [2, 3], body, 4, 24)
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert not array.flags.writeable


def test_binary_data_share_the_arrays_memory():
    array = np.arange(6, dtype="<i8").reshape(2, 3)
    buffer, _ = binary_from_array("INT64", array)
    assert np.shares_memory(np.asarray(buffer), array)


def test_foreign_byte_order_and_strides_are_made_the_wire_s():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    buffer, size = binary_from_array("INT32", array)
    assert bytes(buffer) == array.astype("<i4").tobytes()
    assert size == 24


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array(["a"]), "BYTES"),
        (np.array([b"a"]), "BYTES"),
        (np.array(["a", b"b"], object), "BYTES"),
        (np.array([1], np.intp), "INT64"),
        (np.array([True]), "BOOL"),
        (np.array([1], np.half), "FP16"),
    ],
)
def test_a_dtype_has_its_datatype(array, datatype):
    assert datatype_of(array) == datatype


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "g"])
def test_a_dtype_without_a_datatype_is_refused_by_name(dtype):
    with pytest.raises(OipError, match="none of the protocol's datatypes: BOOL, UINT8"):
        datatype_of(np.zeros(1, dtype))


def test_numpy_s_text_goes_as_utf_8():
    assert bytes(binary_from_array("BYTES", np.array(["é"]))[0]) == b"\x02\0\0\0\xc3\xa9"


def test_a_bytes_tensor_holds_nothing_but_bytes_and_text():
    with pytest.raises(OipError, match="bytes or str, not int"):
        binary_from_array("BYTES", np.array([b"a", 3], object))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [2, 3], b"\0" * 20, r"shape \[2, 3\] of FP32 takes 24 bytes, but binary_data_size is 20"),
        ("FP32", [2, 3], b"\0" * 25, "takes 24 bytes, but binary_data_size is 25"),
        ("FP32", [-1, 4], b"", r"shape \[-1, 4\] has a negative dimension"),
        ("FP32", [2**31, 2**31], b"", "overflows"),
        ("UINT8", [2**63], b"", "overflows"),
        ("UINT8", [2**62, 2, 0], b"", "overflows"),
        ("INT8", [0, 2**40], b"", "empty, but its other dimensions"),
        ("FP32", [10**4000], b"", "overflows"),
        ("FP32", [1] * 33, b"\0" * 4, "33 dimensions; at most 32"),
        ("FLOAT", [1], b"\0" * 4, "datatype 'FLOAT' is unknown here; allowed: BOOL"),
        ("BF16", [1], b"\0" * 2, "datatype 'BF16' is unknown here"),
        ("BOOL", [3], b"\0\1\2", "BOOL element is one byte, 0 or 1"),
        ("BYTES", [2], b"\1\0\0\0a", "2 BYTES elements take at least 8 bytes, but binary_data_size is 5"),
        ("BYTES", [2], b"\1\0\0\0a\0\0\0", "element 1 of 2 runs past the end of its 8 bytes"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "element 0 of 1 runs past the end"),
        ("BYTES", [1], b"\0\0\0\0a", "1 bytes of binary data follow the last of 1 elements"),
    ],
)
def test_binary_data_that_do_not_fit_say_what_was_expected(datatype, shape, data, message):
    with pytest.raises(OipError, match=message):
        array_from_binary(datatype, shape, data, 0, len(data))


def test_binary_data_end_where_the_body_ends():
    with pytest.raises(OipError, match="binary_data_size is 8, but only 5 bytes of the body are left"):
        array_from_binary("FP32", [2], b"\0" * 15, 10, 8)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("INT32", [2], [1, 2, 3], r"shape \[2\] takes 2 elements, but data has 3"),
        ("INT32", [2, 2], [[1, 2], [3]], r"not nested as its shape \[2, 2\] says"),
        ("INT32", [2, 3], [[1, 2], [3, 4], [5, 6]], r"nested as \[3, 2\], but its shape is \[2, 3\]"),
        ("INT32", [2, 2], [[1, 2], 3], r"Expected `array`, got `int` - at `data\[1\]`"),
        ("INT32", [1], [[1]], r"Expected `int`, got `array` - at `data\[0\]`"),
        ("INT32", [1], 1, "Expected `array`, got `int`"),
        ("INT32", [1], None, "Expected `array`, got `null`"),
        ("UINT8", [2], [0, 256], r"Expected `int` <= 255 - at `data\[1\]`"),
        ("UINT8", [1], [-1], "Expected `int` >= 0"),
        ("INT8", [1], [-129], "Expected `int` >= -128"),
        ("INT64", [1], [2**63], "Expected `int` <= 9223372036854775807"),
        ("UINT64", [1], b"[18446744073709551616]", "out of range for UINT64"),
        ("INT32", [1], [1.5], "Expected `int`, got `float`"),
        ("INT32", [1], ["1"], "Expected `int`, got `str`"),
        ("FP32", [1], b"[3.5e38]", "Expected `float` < 3.40"),
        ("FP64", [1], b"[1e999]", "out of range"),
        ("FP32", [1], b"[NaN]", "malformed"),
        ("FP32", [1], b"[Infinity]", "malformed"),
        ("FP32", [1], [None], "Expected `float`, got `null`"),
        ("FP16", [1], [1.0], "FP16 has no JSON form in the protocol; send it as binary data"),
        ("BOOL", [1], [1], "Expected `bool`, got `int`"),
        ("BYTES", [1], [3], "Expected `str`, got `int`"),
        ("BYTES", [1], b'["\xff"]', "not UTF-8"),
        ("BYTES", [2, 1], [["a"], ["b", "c"]], "nested as"),
        ("FP32", [2**62], [1.0], "overflows"),
    ],
)
def test_json_data_that_do_not_fit_say_what_was_expected(datatype, shape, data, message):
    with pytest.raises(OipError, match=message):
        array_from_json(datatype, shape, raw(data))


def test_the_largest_fp32_is_one_however_it_is_rounded():
    largest = np.finfo(np.float32).max
    array = array_from_json("FP32", [2], raw(b"[3.4028235e38, -3.4028234663852886e38]"))
    assert array.tolist() == [largest, -largest]


def test_a_shape_that_lies_allocates_nothing():
    tracemalloc.start()
    for shape in ([2**40], [2**20, 2**20], [10**9]):
        for decode in (
            lambda shape: array_from_binary("BYTES", shape, b"\0" * 64, 0, 64),
            lambda shape: array_from_binary("FP64", shape, b"\0" * 64, 0, 64),
            lambda shape: array_from_json("FP64", shape, raw([1.0] * 8)),
            lambda shape: array_from_json("BYTES", shape, raw(["a"])),
        ):
            with pytest.raises(OipError):
                decode(shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_say_is_refused_with_the_remedy(value):
    with pytest.raises(OipError, match=r"no JSON form \(RFC 8259 section 6\); do so"):
        json_from_array("FP64", np.array([0.0, value]), remedy="do so")


def test_text_that_is_none_is_refused_with_the_remedy():
    with pytest.raises(OipError, match="not UTF-8, which JSON needs; do so"):
        json_from_array("BYTES", np.array([b"\xff"], object), remedy="do so")


def test_fp16_is_refused_as_json_with_the_remedy():
    with pytest.raises(OipError, match="FP16 has no JSON form in the protocol; do so"):
        json_from_array("FP16", np.zeros(1, np.half), remedy="do so")


@pytest.mark.parametrize(
    ("shape", "text"),
    [([2, 3], "[2, 3]"), (["rows", None, 4], "[-1, -1, 4]"), ([], "[]"), ([10**30], "[1" + "0" * 19 + "]")],
)
def test_a_shape_in_a_message(shape, text):
    assert shape_text(shape) == text


def test_a_long_shape_in_a_message_is_cut():
    assert len(shape_text([10**19] * 32)) < 130
