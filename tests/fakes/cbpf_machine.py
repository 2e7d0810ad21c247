# SPDX-License-Identifier: Apache-2.0
"""A machine for classic BPF as the kernel runs it on a socket: 32-bit arithmetic, and 0 for a load behind the end."""

from __future__ import annotations

import struct

__all__ = ["run"]

_MASK = 0xFFFFFFFF


def run(program: bytes, packet: bytes) -> int:
    """What the program returns for a packet. An instruction that it does not know, or running off the end, raises."""
    a = x = 0
    memory: dict[int, int] = {}
    at = 0
    while True:
        code, yes, no, k = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20 | 0x28 | 0x30:
                size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
                if k + size > len(packet):
                    return 0
                a = int.from_bytes(packet[k : k + size], "big")
            case 0x80:
                a = len(packet)
            case 0x60:
                a = memory[k]
            case 0x02:
                memory[k] = a
            case 0x07:
                x = a
            case 0x24 | 0x54 | 0x74 | 0x94 | 0xA4 | 0x04 | 0x0C:
                a = _arithmetic(code, a, k, x) & _MASK
            case 0x15 | 0x1D | 0x25 | 0x35 | 0x45:
                at += yes if _holds(code, a, k, x) else no
            case _:
                return _returned(code, a, k)


def _returned(code: int, a: int, k: int) -> int:
    assert code in (0x06, 0x16), f"unknown instruction 0x{code:02x}"
    return k if code == 0x06 else a


def _arithmetic(code: int, a: int, k: int, x: int) -> int:
    match code:
        case 0x24:
            return a * k
        case 0x54:
            return a & k
        case 0x74:
            assert k < 32, "the kernel refuses this"
            return a >> k
        case 0x94:
            assert k, "the kernel refuses this"
            return a % k
        case 0xA4:
            return a ^ k
        case 0x04:
            return a + k
    return a + x


def _holds(code: int, a: int, k: int, x: int) -> bool:
    match code:
        case 0x15:
            return a == k
        case 0x1D:
            return a == x
        case 0x25:
            return a > k
        case 0x35:
            return a >= k
    return bool(a & k)
