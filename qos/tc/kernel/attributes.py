# SPDX-License-Identifier: Apache-2.0
"""Netlink's attributes: length, type, value, padded to four bytes (include/net/netlink.h)."""

from __future__ import annotations

import struct

__all__ = [
    "attribute",
    "attribute_pairs",
    "nested",
    "nested_attributes",
    "read_text",
    "read_u16",
    "read_u32",
    "read_u64",
    "text",
    "u8",
    "u16",
    "u32",
    "u64",
]

_HEADER = struct.Struct("=HH")
_NESTED = 0x8000  # NLA_F_NESTED: ets asks for it, the older kinds ignore it
_TYPE = 0x3FFF  # NLA_TYPE_MASK


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute."""
    return _HEADER.pack(_HEADER.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(values))


def u8(kind: int, value: int) -> bytes:
    """One byte."""
    return attribute(kind, struct.pack("=B", value))


def u16(kind: int, value: int) -> bytes:
    """Two bytes, host order."""
    return attribute(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """Four bytes, host order."""
    return attribute(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    """Eight bytes, host order."""
    return attribute(kind, struct.pack("=Q", value))


def text(kind: int, value: str) -> bytes:
    """A string, as C ends it."""
    return attribute(kind, value.encode() + b"\0")


def attribute_pairs(data: bytes) -> list[tuple[int, bytes]]:
    """Types and values in their order. What is cut short ends the list: the kernel sends none such."""
    found = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            break
        found.append((kind & _TYPE, bytes(data[offset + _HEADER.size : offset + length])))
        offset += length + -length % 4
    return found


def nested_attributes(data: bytes | None) -> dict[int, bytes]:
    """The attributes of an attribute, by type; of several of one type the last."""
    return dict(attribute_pairs(data or b""))


def read_u16(value: bytes | None, otherwise: int = 0) -> int:
    """The first two bytes."""
    return _read("=H", value, otherwise)


def read_u32(value: bytes | None, otherwise: int = 0) -> int:
    """The first four bytes."""
    return _read("=I", value, otherwise)


def read_u64(value: bytes | None, otherwise: int = 0) -> int:
    """The first eight bytes."""
    return _read("=Q", value, otherwise)


def read_text(value: bytes | None) -> str:
    """Up to the zero byte."""
    return (value or b"").split(b"\0", 1)[0].decode(errors="replace")


def _read(layout: str, value: bytes | None, otherwise: int) -> int:
    if value is None or len(value) < struct.calcsize(layout):
        return otherwise
    return int(struct.unpack_from(layout, value)[0])
