# SPDX-License-Identifier: Apache-2.0
"""Our frames are aioquic's: what one writes the other reads, and what does not parse reads as None."""

from __future__ import annotations

from aioquic._buffer import Buffer
from aioquic.quic.packet import pull_ack_frame
from aioquic.quic.rangeset import RangeSet
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic import frames
from proxy.quic.frames import (
    MAX_ACK_RANGES,
    ack_frame,
    after_padding,
    read_ack,
    read_stream,
    read_varint,
    varint,
)

NUMBERS = st.integers(0, (1 << 62) - 1) | st.integers(0, 20000)
RANGES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=60)


def ascending(gaps_and_lengths: list[tuple[int, int]]) -> RangeSet:
    ranges, at = RangeSet(), 0
    for gap, length in gaps_and_lengths:
        ranges.add(at + gap, at + gap + length)
        at += gap + length + 1
    return ranges


@given(NUMBERS)
def test_a_number_is_written_as_aioquic_writes_it(value: int) -> None:
    buffer = Buffer(capacity=8)
    buffer.push_uint_var(value)
    assert varint(value) == buffer.data
    assert read_varint(b"x" + varint(value), 1) == (value, 1 + len(buffer.data))


@given(RANGES, st.integers(0, 1 << 20))
def test_an_acknowledgement_that_we_write_reads_alike_here_and_there(gaps: list[tuple[int, int]], delay: int) -> None:
    ranges = ascending(gaps)
    frame = ack_frame(ranges, delay)
    newest = [(each.start, each.stop) for each in ranges][-MAX_ACK_RANGES:]
    assert read_ack(frame + b"\x01", 0) == (newest, delay, len(frame))
    theirs, their_delay = pull_ack_frame(Buffer(data=frame[1:]))
    assert ([(each.start, each.stop) for each in theirs], their_delay) == (newest, delay)


@given(st.binary(max_size=60))
def test_whatever_comes_reads_as_aioquic_reads_it_or_not_at_all(rest: bytes) -> None:
    ours = read_ack(b"\x02" + rest, 0)
    buffer = Buffer(data=rest)
    try:
        theirs, delay = pull_ack_frame(buffer)
    except ValueError:  # BufferReadError is one
        assert ours is None
        return
    assert ours is not None
    merged = RangeSet(range(*each) for each in ours[0])
    assert (merged, ours[1], ours[2]) == (theirs, delay, 1 + buffer.tell())


@given(NUMBERS, NUMBERS, st.binary(max_size=30), st.integers(0, 7), st.integers(0, 12))
def test_a_stream_frame_is_read_and_a_cut_one_is_not(
    stream_id: int, offset: int, data: bytes, bits: int, cut: int
) -> None:
    head = bytes((8 | bits,)) + varint(stream_id)
    if bits & 4:
        head += varint(offset)
    if bits & 2:
        head += varint(len(data))
    frame = head + data
    at = offset if bits & 4 else 0
    if at + len(data) >= 1 << 62:
        assert read_stream(frame, 0) is None
    else:
        assert read_stream(frame, 0) == (stream_id, at, len(head), len(frame))
    if bits & 2 and 0 < cut < len(frame):
        assert read_stream(frame[:-cut], 0) is None


def test_padding_ends_at_the_next_frame_or_with_the_payload() -> None:
    assert after_padding(b"\x01\x00\x00\x00\x01", 1) == 4
    assert after_padding(bytes(9), 3) == 9


class Whole(bytes):
    """Bytes that may not be copied in part."""

    def __getitem__(self, _: object) -> bytes:  # type: ignore[override]
        raise AssertionError("a copy")


def test_padding_is_passed_over_without_a_copy_of_what_follows() -> None:
    assert frames.after_padding(Whole(b"\x01\x00\x00\x01\x00"), 1) == 3
    assert frames.after_padding(Whole(b"\x00\x00"), 0) == 2
