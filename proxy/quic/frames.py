# SPDX-License-Identifier: Apache-2.0
"""The frames that nearly every 1-RTT packet consists of (RFC 9000 section 19), read from bytes and written to bytes.

aioquic reads a payload through a cursor object, one call a number; at a packet for every request that was most of
what a packet cost beside its cipher. Whatever does not parse here reads as None, and aioquic's own code then judges
the same bytes and names the error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "ACK",
    "DATAGRAM",
    "DATAGRAM_WITH_LENGTH",
    "LOOK_AHEAD",
    "MAX_ACK_RANGES",
    "MAX_DATA",
    "MAX_STREAM_DATA",
    "PADDING",
    "PING",
    "STREAM",
    "STREAM_FIN",
    "STREAM_LENGTH",
    "STREAM_OFFSET",
    "Ack",
    "StreamFrame",
    "ack_frame",
    "after_padding",
    "read_ack",
    "read_stream",
    "read_varint",
    "varint",
]

PADDING, PING, ACK, STREAM = 0x00, 0x01, 0x02, 0x08
STREAM_FIN, STREAM_LENGTH, STREAM_OFFSET = 1, 2, 4
MAX_DATA, MAX_STREAM_DATA = 0x10, 0x11
DATAGRAM, DATAGRAM_WITH_LENGTH = 0x30, 0x31
MAX_ACK_RANGES = 32
"""Written, the newest ones: enough for 62 losses, and at most 32 * 16 bytes beside the data."""
LOOK_AHEAD = 256
"""Bytes of a payload that are looked at for padding at once where looking is copying."""
_LARGEST = (1 << 62) - 1
_ANYTHING_ELSE = re.compile(rb"[^\x00]").search
_ONE_BYTE = [bytes((value,)) for value in range(0x40)]

StreamFrame = tuple[int, int, int, int]
"""Stream id, offset, where its data begins and ends in the payload."""
Ack = tuple[list[tuple[int, int]], int, int]
"""Ranges [start, stop), the smallest first; the encoded delay; where the frame ends."""


def varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000 section 16)."""
    if value < 0x40:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


def read_varint(plain: bytes, at: int) -> tuple[int, int]:
    """Its value and where it ends. Raises IndexError where the payload ends before it."""
    first = plain[at]
    if first < 0x40:
        return first, at + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | plain[at + 1], at + 2
    size = 1 << (first >> 6)
    end = at + size
    if end > len(plain):
        raise IndexError
    return int.from_bytes(plain[at:end], "big") & ((1 << (8 * size - 2)) - 1), end


def read_stream(plain: bytes, at: int) -> StreamFrame | None:
    """The STREAM frame that begins at `at`; None: aioquic has to judge it."""
    kind = plain[at]
    offset = 0
    try:
        stream_id, at = read_varint(plain, at + 1)
        if kind & STREAM_OFFSET:
            offset, at = read_varint(plain, at)
        if kind & STREAM_LENGTH:
            length, at = read_varint(plain, at)
            end = at + length
        else:
            end = len(plain)
    except IndexError:
        return None
    if end > len(plain) or offset + end - at > _LARGEST:
        return None
    return stream_id, offset, at, end


def read_ack(plain: bytes, at: int) -> Ack | None:
    """The ACK frame (without ECN counts) that begins at `at`; None: aioquic has to judge it."""
    try:
        largest, at = read_varint(plain, at + 1)
        delay, at = read_varint(plain, at)
        more, at = read_varint(plain, at)
        length, at = read_varint(plain, at)
        start = largest - length
        ranges = [(start, largest + 1)]
        for _ in range(more):
            gap, at = read_varint(plain, at)
            length, at = read_varint(plain, at)
            stop = start - gap - 1
            start = stop - length - 1
            ranges.append((start, stop))
    except IndexError:
        return None
    ranges.reverse()
    return None if start < 0 else (ranges, delay, at)


def ack_frame(ranges: Sequence[range], delay: int) -> bytes:
    """An ACK of these ranges, the smallest first; of many only the newest (RFC 9000 section 13.2.3)."""
    newest = ranges[-1]
    count = min(len(ranges), MAX_ACK_RANGES)
    last = newest.stop - 1
    head = (b"\x02", varint(last), varint(delay), varint(count - 1), varint(last - newest.start))
    if count == 1:
        return b"".join(head)
    parts = list(head)
    start = newest.start
    for each in ranges[-2 : -count - 1 : -1]:
        parts += (varint(start - each.stop - 1), varint(each.stop - each.start - 1))
        start = each.start
    return b"".join(parts)


def after_padding(plain: bytes, at: int) -> int:
    """Where the PADDING that begins at `at` ends. No copy of what follows: frames may alternate with it."""
    found = _ANYTHING_ELSE(plain, at)
    return len(plain) if found is None else found.start()
