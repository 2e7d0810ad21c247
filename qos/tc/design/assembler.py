# SPDX-License-Identifier: Apache-2.0
"""A BPF assembler with names for the places that jumps lead to: no more of the language than our classifier needs."""

from __future__ import annotations

import struct
import sys
from enum import IntEnum

__all__ = ["FRAME", "Assembler", "Op"]

FRAME = 10
"""The register that holds the end of the stack."""


class Op(IntEnum):
    """Codes of struct bpf_insn (linux/bpf.h, RFC 9669); 64 bits wide where the name says nothing."""

    GO = 0x05
    ADD = 0x07
    ADD_REGISTER = 0x0F
    IF_EQUAL = 0x15
    IF_EQUAL_32 = 0x16
    IF_MORE = 0x25
    IF_AT_LEAST = 0x35
    AND_32 = 0x54
    IF_OTHER = 0x55
    AND = 0x57
    LOAD_32 = 0x61
    STORE_32 = 0x63
    SHIFT_LEFT = 0x67
    LOAD_16 = 0x69
    LOAD_8 = 0x71
    SHIFT_RIGHT_32 = 0x74
    SHIFT_RIGHT = 0x77
    STORE_64 = 0x7B
    CALL = 0x85
    EXIT = 0x95
    IF_LESS = 0xA5
    SET_32 = 0xB4
    SET = 0xB7
    MOVE = 0xBF
    TO_BIG_ENDIAN = 0xDC


_LOADS = {1: Op.LOAD_8, 2: Op.LOAD_16, 4: Op.LOAD_32}


class Assembler:
    """Instructions in order; `assembled` fills in how far the jumps go."""

    def __init__(self) -> None:
        self._code: list[tuple[Op, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._code)

    def add(self, op: Op, to: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> None:
        """One instruction."""
        self._code.append((op, to, source, offset, imm))

    def label(self, name: str) -> None:
        """Name the place of what comes next."""
        self._labels[name] = len(self._code)

    def go(self, label: str) -> None:
        """Jump in any case."""
        self._code.append((Op.GO, 0, 0, label, 0))

    def jump(self, op: Op, register: int, imm: int, label: str) -> None:
        """Jump where the comparison holds."""
        self._code.append((op, register, 0, label, imm))

    def must(self, op: Op, register: int, imm: int, otherwise: str) -> None:
        """Go on where the comparison holds, jump where it does not."""
        self.add(op, register, offset=1, imm=imm)
        self.go(otherwise)

    def move(self, to: int, source: int) -> None:
        """Copy a register."""
        self.add(Op.MOVE, to, source)

    def load(self, to: int, source: int, offset: int, size: int) -> None:
        """1, 2 or 4 bytes from behind a register."""
        self.add(_LOADS[size], to, source, offset)

    def assembled(self) -> bytes:
        """The program."""
        return b"".join(
            struct.pack("=BBhi", op, _registers(to, source), self._distance(place, offset), imm)
            for place, (op, to, source, offset, imm) in enumerate(self._code)
        )

    def _distance(self, place: int, offset: int | str) -> int:
        return self._labels[offset] - place - 1 if isinstance(offset, str) else offset


def _registers(to: int, source: int) -> int:
    # Two bit fields of four: on little-endian machines the first is the low half.
    return to | source << 4 if sys.byteorder == "little" else to << 4 | source
