# SPDX-License-Identifier: Apache-2.0
"""A machine for our classifier: as much of BPF (RFC 9669) as it uses, strict about what the verifier would refuse."""

from __future__ import annotations

import struct

from qos.tc.design.assembler import Op

__all__ = ["run"]

_MASK = (1 << 64) - 1
_STACK = 1 << 40
_CONTEXT = 1 << 41
_JUMPS = {
    Op.IF_EQUAL: lambda a, b: a == b,
    Op.IF_EQUAL_32: lambda a, b: a & 0xFFFFFFFF == b & 0xFFFFFFFF,
    Op.IF_OTHER: lambda a, b: a != b,
    Op.IF_MORE: lambda a, b: a > b,
    Op.IF_AT_LEAST: lambda a, b: a >= b,
    Op.IF_LESS: lambda a, b: a < b,
}
_ARITHMETIC = {
    Op.SET: lambda a, b: b,
    Op.SET_32: lambda a, b: b & 0xFFFFFFFF,
    Op.ADD: lambda a, b: a + b,
    Op.AND: lambda a, b: a & b,
    Op.AND_32: lambda a, b: a & b & 0xFFFFFFFF,
    Op.SHIFT_LEFT: lambda a, b: a << b,
    Op.SHIFT_RIGHT: lambda a, b: a >> b,
    Op.SHIFT_RIGHT_32: lambda a, b: (a & 0xFFFFFFFF) >> b,
}
_WIDTHS = {Op.LOAD_8: 1, Op.LOAD_16: 2, Op.LOAD_32: 4, Op.STORE_32: 4, Op.STORE_64: 8}


def run(program: bytes, frame: bytes, *, priority: int = 0) -> tuple[int, int]:
    """The program's answer for an Ethernet frame, and the packet priority that it leaves."""
    machine = _Machine(frame, priority)
    place = 0
    for _ in range(len(program) // 8):
        code, names, offset, imm = struct.unpack_from("=BBhi", program, 8 * place)
        op, to, source = Op(code), names & 15, names >> 4
        if op is Op.EXIT:
            answer = machine.registers[0] & 0xFFFFFFFF
            return answer - (answer >> 31 << 32), struct.unpack_from("=I", machine.context, 32)[0]
        place += 1
        if op is Op.GO or (op in _JUMPS and _JUMPS[op](machine.registers[to], imm & _MASK)):
            place += offset
        elif op not in _JUMPS:
            machine.step(op, to, source, offset, imm)
    raise AssertionError("a loop")


class _Machine:
    def __init__(self, frame: bytes, priority: int) -> None:
        self.packet = frame[14:]
        self.registers: dict[int, int] = {1: _CONTEXT, 10: _STACK}
        self.stack: dict[int, int] = {}
        self.context = bytearray(192)
        struct.pack_into("=I", self.context, 16, int.from_bytes(frame[12:14], "little"))
        struct.pack_into("=I", self.context, 32, priority)

    def step(self, op: Op, to: int, source: int, offset: int, imm: int) -> None:
        registers = self.registers
        if op in _ARITHMETIC:
            before = 0 if op in (Op.SET, Op.SET_32) else registers[to]
            registers[to] = _ARITHMETIC[op](before, imm & _MASK) & _MASK
        elif op is Op.MOVE:
            registers[to] = registers[source]
        elif op is Op.ADD_REGISTER:
            registers[to] = registers[to] + registers[source] & _MASK
        elif op is Op.TO_BIG_ENDIAN:
            registers[to] = int.from_bytes((registers[to] & 0xFFFF).to_bytes(2, "little"), "big")
        elif op in (Op.LOAD_8, Op.LOAD_16, Op.LOAD_32):
            found = [self._byte(registers[source] + offset + each) for each in range(_WIDTHS[op])]
            registers[to] = int.from_bytes(bytes(found), "little")
        elif op in (Op.STORE_32, Op.STORE_64):
            value = registers[source].to_bytes(8, "little")
            for each in range(_WIDTHS[op]):
                self._set_byte(registers[to] + offset + each, value[each])
        else:
            assert op is Op.CALL and imm == 68
            registers[0] = self._load_bytes()
            for each in range(1, 6):
                del registers[each]

    def _load_bytes(self) -> int:
        """bpf_skb_load_bytes_relative() from the network header (net/core/filter.c)."""
        context, offset, to, length, start = (self.registers[each] for each in range(1, 6))
        assert (context, start) == (_CONTEXT, 1)
        assert _STACK - 512 <= to <= _STACK - length
        there = offset <= 0xFFFF and offset + length <= len(self.packet)
        content = self.packet[offset : offset + length] if there else bytes(length)
        self.stack.update({to + each: content[each] for each in range(length)})
        return 0 if there else -14 & _MASK

    def _byte(self, address: int) -> int:
        if address >= _CONTEXT:
            return self.context[address - _CONTEXT]
        return self.stack[address]  # KeyError: read before it was written

    def _set_byte(self, address: int, value: int) -> None:
        if address >= _CONTEXT:
            assert 32 <= address - _CONTEXT < 36, "only the priority"
            self.context[address - _CONTEXT] = value
        else:
            assert _STACK - 512 <= address < _STACK
            self.stack[address] = value
