# SPDX-License-Identifier: Apache-2.0
"""The classic BPF program that picks a socket of a SO_REUSEPORT group for each datagram. Pure.

It sees the UDP payload and returns a place:
- a QUIC packet whose destination id is ours, of a place that somebody reads: that place. So a client keeps its worker
  when its address changes, and through an upgrade.
- any other QUIC packet: a hash of its destination id over the current bank. All packets of a handshake come with the
  id that the client chose until they come with ours.
- an inference datagram: its request id modulo the current bank, so that its fragments and repetitions meet.
- the rest, which nobody answers: the first place of the current bank.

Classic and not extended BPF, because it needs no capability and no compiler. A load behind the packet's end would end
the program with place 0, so lengths are looked at first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferlane.wire import MAGIC
from proxy.quic.connection_ids import CID_LENGTH, PLACES, VERSION, Mix

__all__ = ["SHORTEST", "Instruction", "Steering", "assemble", "decide", "program"]

SHORTEST = 16
"""Whatever is shorter is no QUIC packet and no inference datagram (21 and 32 bytes), and every load below fits in."""
_LONG, _FIXED = 0x80, 0x40
_LONG_ID_LENGTH, _LONG_ID, _SHORT_ID = 5, 6, 1  # RFC 9000 section 17: offsets
_REQUEST_ID_LOW = 12  # docs/wire.md: eight bytes at 8, of which the lower half counts here

# linux/filter.h, linux/bpf_common.h
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE, _LOAD_LENGTH = 0x20, 0x28, 0x30, 0x80
_LOAD_MEMORY, _STORE = 0x60, 0x02
_MULTIPLY, _AND, _RIGHT, _MODULO, _XOR, _ADD, _ADD_X = 0x24, 0x54, 0x74, 0x94, 0xA4, 0x04, 0x0C
_GO, _IF_EQUAL, _IF_EQUAL_X, _IF_MORE, _IF_LEAST, _IF_ANY = 0x05, 0x15, 0x1D, 0x25, 0x35, 0x45
_A_TO_X = 0x07
_RETURN, _RETURN_A = 0x06, 0x16
_HEAD_SLOT = 0


@dataclass(frozen=True, slots=True)
class Steering:
    """Where what goes. key: of the connection ids (`Keys.steering`), shared by all.

    current: the places that get what is new. live: further places that somebody still reads: those of a generation
    that drains. The program has one test for each of these ranges.
    """

    key: bytes = field(repr=False)
    current: range
    live: Sequence[range] = ()

    def __post_init__(self) -> None:
        for each in (self.current, *self.live):
            if not (each and each.step == 1 and 0 <= each.start < each.stop <= PLACES):
                raise ValueError(f"{each} is no range of places")

    def reads(self, place: int) -> bool:
        """Whether somebody reads a place's socket."""
        return place in self.current or any(place in each for each in self.live)


def decide(steering: Steering, datagram: bytes) -> int:
    """The place of a datagram: what the program computes, for people to read and for tests to compare."""
    start, count = steering.current.start, len(steering.current)
    if len(datagram) < SHORTEST:
        return start
    first = datagram[0]
    if not first & (_LONG | _FIXED):
        low = int.from_bytes(datagram[_REQUEST_ID_LOW : _REQUEST_ID_LOW + 4], "big")
        return start + low % count if first == MAGIC else start
    mix = Mix.of(steering.key)
    at = _LONG_ID if first & _LONG else _SHORT_ID
    if not first & _LONG or datagram[_LONG_ID_LENGTH] == CID_LENGTH:
        head = int.from_bytes(datagram[at : at + 2], "big")
        if head >> 12 == VERSION and mix.check(head) == datagram[at + 2] and steering.reads(head & 0xFF):
            return head & 0xFF
    words = (int.from_bytes(datagram[each : each + 4], "big") for each in (at, at + 4))
    return start + mix.spread(*words) % count


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of classic BPF. yes and no: the labels to go on at, "" for the next instruction."""

    code: int
    k: int = 0
    yes: str = ""
    no: str = ""
    label: str = ""
    """This instruction's own."""

    @classmethod
    def always(cls, place: int) -> Instruction:
        """A whole program: everything to one place."""
        return cls(_RETURN, place)


def program(steering: Steering) -> bytes:
    """The program as the kernel takes it: an array of struct sock_filter."""
    start, count = steering.current.start, len(steering.current)
    mix = Mix.of(steering.key)
    return assemble(
        [
            Instruction(_LOAD_LENGTH),
            Instruction(_IF_LEAST, SHORTEST, no="rest"),
            Instruction(_LOAD_BYTE, 0),
            Instruction(_IF_ANY, _LONG, yes="long"),
            Instruction(_IF_ANY, _FIXED, yes="short"),
            Instruction(_IF_EQUAL, MAGIC, no="rest"),
            Instruction(_LOAD_WORD, _REQUEST_ID_LOW),
            *_modulo(start, count),
            Instruction(_RETURN, start, label="rest"),
            Instruction(_LOAD_BYTE, _LONG_ID_LENGTH, label="long"),
            Instruction(_IF_EQUAL, CID_LENGTH, no=f"hash{_LONG_ID}"),
            *_by_id(steering, mix, _LONG_ID),
            Instruction(_LOAD_HALF, _SHORT_ID, label="short"),
            *_by_id(steering, mix, _SHORT_ID)[1:],
        ]
    )


def assemble(listing: Sequence[Instruction]) -> bytes:
    """Labels become distances. Jumps go forward only, 255 instructions at most."""
    at = {each.label: index for index, each in enumerate(listing) if each.label}
    code = bytearray()
    for index, each in enumerate(listing):
        yes, no = (at[label] - index - 1 if label else 0 for label in (each.yes, each.no))
        code += struct.pack("=HBBI", each.code, yes, no, each.k)
    return bytes(code)


def _by_id(steering: Steering, mix: Mix, at: int) -> list[Instruction]:
    """By the destination id at an offset: its place if it is ours, else a hash over the current bank."""
    unknown = f"hash{at}"
    listing = [
        Instruction(_LOAD_HALF, at),
        Instruction(_STORE, _HEAD_SLOT),
        Instruction(_XOR, mix.mask),
        Instruction(_MULTIPLY, mix.multiplier),
        Instruction(_RIGHT, 24),
        Instruction(_A_TO_X),
        Instruction(_LOAD_BYTE, at + 2),
        Instruction(_IF_EQUAL_X, no=unknown),
        Instruction(_LOAD_MEMORY, _HEAD_SLOT),
        Instruction(_RIGHT, 12),
        Instruction(_IF_EQUAL, VERSION, no=unknown),
        Instruction(_LOAD_MEMORY, _HEAD_SLOT),
        Instruction(_AND, 0xFF),
    ]
    ranges = (steering.current, *steering.live)
    for number, each in enumerate(ranges):
        following = f"live{at}.{number + 1}" if number + 1 < len(ranges) else unknown
        listing += [
            Instruction(_IF_LEAST, each.start, no=following, label=f"live{at}.{number}"),
            Instruction(_IF_MORE, each.stop - 1, yes=following),
            Instruction(_RETURN_A),
        ]
    return [
        *listing,
        Instruction(_LOAD_WORD, at, label=unknown),
        Instruction(_MULTIPLY, mix.first),
        Instruction(_A_TO_X),
        Instruction(_LOAD_WORD, at + 4),
        Instruction(_ADD_X),
        Instruction(_MULTIPLY, mix.second),
        Instruction(_RIGHT, 16),
        *_modulo(steering.current.start, len(steering.current)),
    ]


def _modulo(start: int, count: int) -> list[Instruction]:
    return [Instruction(_MODULO, count), Instruction(_ADD, start), Instruction(_RETURN_A)]
