# SPDX-License-Identifier: Apache-2.0
"""One tensor's data <-> numpy: little-endian bytes as views where possible, or JSON values.

Nothing is allocated because a shape says so: every array is backed by data that came, and costs at most
a small multiple of it. Messages here do not name the tensor; inferlane.oip puts its name in front.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DATATYPES",
    "Array",
    "OipError",
    "array_from_binary",
    "array_from_json",
    "binary_from_array",
    "datatype_of",
    "json_from_array",
    "shape_text",
]

Array = NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""The protocol's datatypes, as they lie in memory and on the wire. BYTES: an array of bytes objects."""

_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DATATYPES.items() if name != "BYTES"}
_LENGTH = Struct("<I")  # before each BYTES element
_MAX_RANK = 32  # numpy 1.x has no more
_MAX_BYTES = 2**63 - 1
# An empty tensor costs no data whatever its other dimensions say, yet a model that reduces over the empty one
# allocates them: 8 MiB at most.
_MAX_AROUND_EMPTY = 2**20
_NESTED = re.compile(rb"\s*\[\s*\[")

# Half a unit in the last place above the largest FP32: from here on a number rounds to infinity.
_FP32_END = 2.0**128 - 2.0**103
_JSON_ELEMENTS: dict[str, Any] = {
    **{
        name: Annotated[int, msgspec.Meta(ge=int(np.iinfo(dtype).min), le=int(np.iinfo(dtype).max))]
        for name, dtype in DATATYPES.items()
        if dtype.kind in "iu" and name != "UINT64"
    },
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],  # numpy checks the upper end, which is beyond msgspec's
    "FP32": Annotated[float, msgspec.Meta(gt=-_FP32_END, lt=_FP32_END)],
    "FP64": float,
    "BOOL": bool,
    "BYTES": str,
}


class OipError(ValueError):
    """A body that is not what the Open Inference Protocol, or the model, expects.

    tensor: the name of the tensor at fault; "" where the body as a whole is.
    """

    def __init__(self, message: str, *, tensor: str = "") -> None:
        super().__init__(message)
        self.tensor = tensor


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype; str, bytes and object arrays are BYTES."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
    if name is None:
        raise OipError(f"numpy's {array.dtype} is none of the protocol's datatypes: {', '.join(DATATYPES)}")
    return name


def shape_text(shape: Sequence[int | str | None]) -> str:
    """A shape for a message, -1 where the dimension is free, and never long."""
    text = f"[{', '.join(str(each if isinstance(each, int) else -1)[:20] for each in shape[:_MAX_RANK])}]"
    return text if len(text) <= 120 else f"{text[:120]}..."


def array_from_binary(datatype: str, shape: Sequence[int], body: bytes, start: int, size: int) -> Array:
    """A tensor whose data are `size` bytes of the body: a read-only view into it, except for BYTES."""
    count = _element_count(datatype, shape)
    dtype = DATATYPES[datatype]
    expected = count * dtype.itemsize
    if datatype != "BYTES" and size != expected:
        raise OipError(
            f"shape {shape_text(shape)} of {datatype} takes {expected} bytes, but binary_data_size is {size}"
        )
    if size > len(body) - start:
        raise OipError(f"binary_data_size is {size}, but only {len(body) - start} bytes of the body are left")
    if datatype == "BYTES":
        array = _split_bytes(memoryview(body)[start : start + size], count)
    elif datatype == "BOOL":
        octets = np.frombuffer(body, np.uint8, count, start)
        if count and octets.max() > 1:
            raise OipError("a BOOL element is one byte, 0 or 1; another value is among the data")
        array = octets.view(dtype)
    else:
        array = np.frombuffer(body, dtype, count, start)
    return array.reshape(shape)


def array_from_json(datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """A tensor whose data are a JSON array, flat in row-major order or nested as the shape says."""
    count = _element_count(datatype, shape)
    if datatype == "FP16":
        raise OipError("FP16 has no JSON form in the protocol; send it as binary data (parameters.binary_data_size)")
    nested = len(shape) > 1 and _NESTED.match(data) is not None
    try:
        values = _json_decoder(datatype, len(shape) if nested else 1).decode(data)
        array = np.array(values, DATATYPES[datatype])
    except UnicodeDecodeError:
        raise OipError("data holds a string that is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise OipError(f"data: {error}".replace("`$", "`data")) from None
    except OverflowError:
        raise OipError(f"data holds a number out of range for {datatype}") from None
    except ValueError:  # numpy: lists of different lengths
        raise OipError(f"data is not nested as its shape {shape_text(shape)} says") from None
    if nested and array.shape != tuple(shape):
        raise OipError(f"data is nested as {shape_text(array.shape)}, but its shape is {shape_text(shape)}")
    if array.size != count:
        raise OipError(f"shape {shape_text(shape)} takes {count} elements, but data has {array.size}")
    if datatype == "BYTES":
        array = _objects([text.encode() for text in array.reshape(-1)])
    return array.reshape(shape)


def binary_from_array(datatype: str, array: Array) -> tuple[bytes | memoryview, int]:
    """The tensor's bytes, as a buffer that shares the array's memory where it can, and how many they are."""
    if datatype == "BYTES":
        joined = b"".join(part for each in _elements(array) for part in (_LENGTH.pack(len(each)), each))
        return joined, len(joined)
    return np.ascontiguousarray(array, DATATYPES[datatype]).data, array.nbytes


def json_from_array(datatype: str, array: Array, *, remedy: str) -> list[Any]:
    """The tensor's elements in row-major order, as JSON knows them. remedy: what to do where it does not."""
    if datatype == "FP16":
        raise OipError(f"FP16 has no JSON form in the protocol; {remedy}")
    if datatype == "BYTES":
        try:
            return [each.decode() for each in _elements(array)]
        except UnicodeDecodeError:
            raise OipError(f"an element is not UTF-8, which JSON needs; {remedy}") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise OipError(f"NaN and infinity have no JSON form (RFC 8259 section 6); {remedy}")
    values: list[Any] = array.reshape(-1).tolist()
    return values


def _element_count(datatype: str, shape: Sequence[int]) -> int:
    """How many elements the shape has, if such a tensor can be at all."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise OipError(f"datatype {datatype[:40]!r} is unknown here; allowed: {', '.join(DATATYPES)}")
    if len(shape) > _MAX_RANK:
        raise OipError(f"a shape of {len(shape)} dimensions; at most {_MAX_RANK} are possible")
    count = around = 1
    for each in shape:
        if each < 0:
            raise OipError(f"shape {shape_text(shape)} has a negative dimension")
        count *= each
        around *= each or 1
    if around * dtype.itemsize > _MAX_BYTES:
        raise OipError(f"shape {shape_text(shape)} overflows: its {datatype} elements have more than 2^63 bytes")
    if count == 0 and around > _MAX_AROUND_EMPTY:
        raise OipError(f"shape {shape_text(shape)} is empty, but its other dimensions hold more than 2^20 elements")
    return count


@cache
def _json_decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = _JSON_ELEMENTS[datatype]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _split_bytes(data: memoryview, count: int) -> Array:
    """BYTES elements, each behind its length in 4 bytes."""
    if count * _LENGTH.size > len(data):
        raise OipError(f"{count} BYTES elements take at least {count * 4} bytes, but binary_data_size is {len(data)}")
    elements: list[bytes] = []
    at = 0
    for index in range(count):
        begin = at + _LENGTH.size
        length = _LENGTH.unpack_from(data, at)[0] if begin <= len(data) else 0
        at = begin + length
        if at > len(data):
            raise OipError(f"element {index} of {count} runs past the end of its {len(data)} bytes of binary data")
        elements.append(bytes(data[begin:at]))
    if at != len(data):
        raise OipError(f"{len(data) - at} bytes of binary data follow the last of {count} elements")
    return _objects(elements)


def _objects(elements: list[bytes]) -> Array:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def _elements(array: Array) -> list[bytes]:
    """A BYTES array's elements, text as UTF-8."""
    elements: list[bytes] = []
    for each in array.reshape(-1).tolist():
        if isinstance(each, str):
            elements.append(each.encode())
        elif isinstance(each, bytes):
            elements.append(each)
        else:
            raise OipError(f"a BYTES tensor holds bytes or str, not {type(each).__name__}")
    return elements
