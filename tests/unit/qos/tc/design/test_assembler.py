# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import sys

import pytest

from qos.tc.design.assembler import Assembler, Op


def decoded(code: Assembler) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=BBhi", code.assembled()))


def test_jumps_count_from_the_instruction_after_them():
    code = Assembler()
    code.label("start")
    code.jump(Op.IF_EQUAL, 1, 7, "end")
    code.go("start")
    code.label("end")
    code.add(Op.EXIT)
    assert decoded(code) == [(Op.IF_EQUAL, 1, 1, 7), (Op.GO, 0, -2, 0), (Op.EXIT, 0, 0, 0)]
    assert len(code) == 3


def test_must_goes_on_where_the_comparison_holds():
    code = Assembler()
    code.must(Op.IF_EQUAL_32, 2, -1, "else")
    code.add(Op.EXIT)
    code.label("else")
    assert decoded(code)[:2] == [(Op.IF_EQUAL_32, 2, 1, -1), (Op.GO, 0, 1, 0)]


@pytest.mark.skipif(sys.byteorder != "little", reason="the other half of the byte there")
def test_two_registers_share_a_byte():
    code = Assembler()
    code.move(6, 1)
    code.load(1, 6, 32, 4)
    assert decoded(code) == [(Op.MOVE, 0x16, 0, 0), (Op.LOAD_32, 0x61, 32, 0)]


def test_a_jump_to_nowhere_is_no_program():
    code = Assembler()
    code.go("nowhere")
    with pytest.raises(KeyError):
        code.assembled()
