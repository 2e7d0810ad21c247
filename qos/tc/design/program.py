# SPDX-License-Identifier: Apache-2.0
"""The classifier as a BPF program for clsact's egress hook: it sets a packet's priority to its class's handle.

Written for the verifier as much as for the processor. No map: the handles are immediates, so that one atomic replace of
the filter changes everything at once. Each rule tests, jumps to the next one, or sets the priority and leaves, so a
program of any length has short jumps only. A test jumps over the way out instead of jumping out itself: the verifier
follows the untaken side first and keeps the other for later, at most 8,192 of them (BPF_COMPLEXITY_LIMIT_JMP_SEQ in
kernel/bpf/verifier.c), and this way it keeps one a rule. Nothing is changed in the packet.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from ipaddress import ip_network

from qos.tc.design.assembler import FRAME, Assembler, Op
from qos.tc.design.classifier import Ranges, Rule, RuleTable

__all__ = ["EXTENSIONS", "MOST_INSTRUCTIONS", "instructions", "program_name"]

MOST_INSTRUCTIONS = 1_000_000
"""BPF_COMPLEXITY_LIMIT_INSNS."""
EXTENSIONS = 6
"""IPv6 extension headers to walk over: each kind of RFC 8200 section 4.1 once."""

# linux/bpf.h: struct __sk_buff, the helper, its start.
_PROTOCOL, _PRIORITY = 16, 32
_LOAD_BYTES_RELATIVE, _FROM_NETWORK = 68, 1
_IPV4, _IPV6 = 0x0800, 0x86DD
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _NO_NEXT, _DESTINATION = 0, 43, 44, 51, 59, 60
# The stack, from its top down: the IP header, the ports, an extension header.
_HEADER, _PORTS, _EXTENSION = -40, -48, -56
_R0, _R1, _R2, _R3, _R4, _R5 = range(6)
# Kept over calls: the context, then what rules ask: version, DSCP, protocol.
_CONTEXT, _VERSION, _DSCP, _PROTO = 6, 7, 8, 9
_UNSPEC = -1  # TC_ACT_UNSPEC: whatever filters come next still see the packet


def program_name(program: bytes) -> str:
    """A name that changes when the program does: no kernel gives a program back to compare."""
    return f"inferlane-{hashlib.sha256(program).hexdigest()[:12]}"


def instructions(rules: RuleTable, handles: Mapping[str, int], *, major: int = 0) -> bytes:
    """The program. handles: the packet priority that stands for each class; major: that of the root they belong to."""
    code = Assembler()
    code.move(_CONTEXT, _R1)
    if rules.earlier and major:
        code.load(_R1, _CONTEXT, _PRIORITY, 4)
        code.add(Op.SHIFT_RIGHT_32, _R1, imm=16)
        code.jump(Op.IF_EQUAL, _R1, major, "leave")
    code.load(_R1, _CONTEXT, _PROTOCOL, 4)
    code.jump(Op.IF_EQUAL, _R1, _swapped(_IPV4), "ipv4")
    code.jump(Op.IF_EQUAL, _R1, _swapped(_IPV6), "ipv6")
    code.label("leave")
    _leave(code)
    _read_ipv4(code, transport=rules.needs_transport)
    _read_ipv6(code, transport=rules.needs_transport)
    code.label("rules")
    for place, rule in enumerate(rules.flows):
        _rule(code, rule, handles[rule.traffic_class], f"rule {place + 1}")
        if _asks_nothing(rule):
            return code.assembled()  # the verifier refuses what cannot be reached
    for rule in rules.marks:
        code.add(Op.IF_OTHER, _DSCP, offset=4, imm=rule.dscp or 0)
        _classify(code, handles[rule.traffic_class])
    _leave(code)
    return code.assembled()


def _swapped(ether_type: int) -> int:
    """As the kernel holds it: network order, read as a number."""
    return int.from_bytes(ether_type.to_bytes(2, "big"), sys.byteorder)


def _read_ipv4(code: Assembler, *, transport: bool) -> None:
    """RFC 791 section 3.1."""
    code.label("ipv4")
    _fetch(code, _HEADER, 20)
    code.jump(Op.IF_OTHER, _R0, 0, "leave")
    code.load(_PROTO, FRAME, _HEADER, 1)
    code.jump(Op.IF_LESS, _PROTO, 0x45, "leave")
    code.jump(Op.IF_MORE, _PROTO, 0x4F, "leave")
    if transport:
        code.add(Op.STORE_64, FRAME, _R0, _PORTS)  # r0 is 0 here
        code.load(_R1, FRAME, _HEADER + 6, 2)
        code.add(Op.TO_BIG_ENDIAN, _R1, imm=16)
        code.add(Op.AND, _R1, imm=0x1FFF)
        code.jump(Op.IF_OTHER, _R1, 0, "ipv4 read")
        code.add(Op.AND, _PROTO, imm=0x0F)
        code.add(Op.SHIFT_LEFT, _PROTO, imm=2)
        _fetch(code, _PORTS, 4, at=_PROTO)
        code.label("ipv4 read")
    code.load(_PROTO, FRAME, _HEADER + 9, 1)
    code.load(_DSCP, FRAME, _HEADER + 1, 1)
    code.add(Op.SHIFT_RIGHT, _DSCP, imm=2)
    code.add(Op.SET, _VERSION, imm=4)
    code.go("rules")


def _read_ipv6(code: Assembler, *, transport: bool) -> None:
    """RFC 8200 sections 3 and 4."""
    code.label("ipv6")
    _fetch(code, _HEADER, 40)
    code.jump(Op.IF_OTHER, _R0, 0, "leave")
    code.load(_R1, FRAME, _HEADER, 1)
    code.add(Op.SHIFT_RIGHT, _R1, imm=4)
    code.jump(Op.IF_OTHER, _R1, 6, "leave")
    code.load(_PROTO, FRAME, _HEADER + 6, 1)
    if transport:
        code.add(Op.STORE_64, FRAME, _R0, _PORTS)
        code.add(Op.SET, _DSCP, imm=40)  # until all headers are read: where the next one is
        for step in range(EXTENSIONS):
            _walk_extension(code, step)
        code.label(f"extension {EXTENSIONS}")
        code.label("ports")
        _fetch(code, _PORTS, 4, at=_DSCP)
        code.label("ipv6 read")
    code.load(_DSCP, FRAME, _HEADER, 2)
    code.add(Op.TO_BIG_ENDIAN, _DSCP, imm=16)
    code.add(Op.SHIFT_RIGHT, _DSCP, imm=6)
    code.add(Op.AND, _DSCP, imm=0x3F)
    code.add(Op.SET, _VERSION, imm=6)


def _walk_extension(code: Assembler, step: int) -> None:
    here, after = f"extension {step}", f"extension {step + 1}"
    code.label(here)
    for kind in (_HOP_BY_HOP, _ROUTING, _DESTINATION, _FRAGMENT, _AUTHENTICATION):
        code.jump(Op.IF_EQUAL, _PROTO, kind, f"{here} is there")
    code.go("ports")
    code.label(f"{here} is there")
    code.move(_VERSION, _PROTO)
    _fetch(code, _EXTENSION, 8, at=_DSCP)
    code.add(Op.SET, _PROTO, imm=_NO_NEXT)
    code.jump(Op.IF_OTHER, _R0, 0, "ipv6 read")
    code.load(_PROTO, FRAME, _EXTENSION, 1)
    code.load(_R1, FRAME, _EXTENSION + 1, 1)
    code.jump(Op.IF_EQUAL, _VERSION, _FRAGMENT, f"{here} fragment")
    code.jump(Op.IF_EQUAL, _VERSION, _AUTHENTICATION, f"{here} authentication")
    code.add(Op.ADD, _R1, imm=1)
    code.add(Op.SHIFT_LEFT, _R1, imm=3)
    code.go(f"{here} over")
    code.label(f"{here} authentication")  # RFC 4302 section 2.2: in words, less two
    code.add(Op.ADD, _R1, imm=2)
    code.add(Op.SHIFT_LEFT, _R1, imm=2)
    code.go(f"{here} over")
    code.label(f"{here} fragment")
    code.load(_R1, FRAME, _EXTENSION + 2, 2)
    code.add(Op.TO_BIG_ENDIAN, _R1, imm=16)
    code.add(Op.AND, _R1, imm=0xFFF8)
    code.jump(Op.IF_OTHER, _R1, 0, "ipv6 read")
    code.add(Op.SET, _R1, imm=8)
    code.label(f"{here} over")
    code.add(Op.ADD_REGISTER, _DSCP, _R1)
    code.go(after)


def _rule(code: Assembler, rule: Rule, handle: int, after: str) -> None:
    for register, wanted in ((_VERSION, rule.version), (_PROTO, rule.proto), (_DSCP, rule.dscp)):
        if wanted is not None:
            code.must(Op.IF_EQUAL, register, wanted, after)
    for network, places in ((rule.src, (12, 8)), (rule.dst, (16, 24))):
        if network is not None:
            _network(code, network, places, after)
    for ranges, place in ((rule.sport, 0), (rule.dport, 2)):
        if ranges:
            code.load(_R1, FRAME, _PORTS + place, 2)
            code.add(Op.TO_BIG_ENDIAN, _R1, imm=16)
            _ports(code, ranges, after)
    _classify(code, handle)
    code.label(after)


def _asks_nothing(rule: Rule) -> bool:
    asked = rule.version, rule.proto, rule.src, rule.dst, rule.dscp
    return asked == (None,) * 5 and not rule.sport and not rule.dport


def _network(code: Assembler, text: str, places: tuple[int, int], after: str) -> None:
    """Compares word by word as the bytes lie, so that nothing has to be swapped."""
    network = ip_network(text)
    place = _HEADER + places[network.version == 6]
    address, mask = network.network_address.packed, network.netmask.packed
    for at in range(0, len(mask), 4):
        wanted, bits = (int.from_bytes(each[at : at + 4], sys.byteorder, signed=True) for each in (address, mask))
        if bits:
            code.load(_R1, FRAME, place + at, 4)
            if bits != -1:
                code.add(Op.AND_32, _R1, imm=bits)
            code.must(Op.IF_EQUAL_32, _R1, wanted, after)


def _ports(code: Assembler, ranges: Ranges, after: str) -> None:
    matched = f"{after} {len(code)}"
    for first, last in ranges:
        if first == last:
            code.jump(Op.IF_EQUAL, _R1, first, matched)
        else:
            code.add(Op.IF_MORE, _R1, offset=1, imm=last)
            code.jump(Op.IF_AT_LEAST, _R1, first, matched)
    code.go(after)
    code.label(matched)


def _fetch(code: Assembler, to: int, length: int, *, at: int | None = None) -> None:
    """bpf_skb_load_bytes_relative() to the stack, from a register's place behind the network header.

    Where the packet ends before, it zeroes the place and answers so; LD_ABS would end the whole program.
    """
    code.move(_R1, _CONTEXT)
    if at is None:
        code.add(Op.SET, _R2)
    else:
        code.move(_R2, at)
    code.move(_R3, FRAME)
    code.add(Op.ADD, _R3, imm=to)
    code.add(Op.SET, _R4, imm=length)
    code.add(Op.SET, _R5, imm=_FROM_NETWORK)
    code.add(Op.CALL, imm=_LOAD_BYTES_RELATIVE)


def _classify(code: Assembler, handle: int) -> None:
    code.add(Op.SET_32, _R1, imm=handle)
    code.add(Op.STORE_32, _CONTEXT, _R1, _PRIORITY)
    _leave(code)


def _leave(code: Assembler) -> None:
    code.add(Op.SET, _R0, imm=_UNSPEC)
    code.add(Op.EXIT)
