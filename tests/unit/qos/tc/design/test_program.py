# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from qos.tc.design.classifier import classify_packet, rule_table
from qos.tc.design.program import instructions, program_name
from qos.tc.policy import Flow
from tests.fakes.bpf_machine import run
from tests.fakes.link_policies import policy_of
from tests.fakes.packets import frame, frames, ipv4, ipv6, policies, read

HANDLES = {"realtime": 0x51A0016, "interactive": 0x51A0024, "batch": 0x51A0030, "background": 0x51A0042}
UDP = b"\x00\x35\x13\x88"  # from 53 to 5000


def priority_of(packet: bytes, *flows: dict, priority: int = 0) -> int:
    program = instructions(rule_table(policy_of(flows=flows)), HANDLES, major=0x51A)
    action, left = run(program, frame(packet), priority=priority)
    assert action == -1
    return left


@given(policies(), frames())
def test_the_program_says_what_the_reference_says(policy, received):
    rules = rule_table(policy)
    packet = read(received[14:]) if received[12:14] in (b"\x08\x00", b"\x86\xdd") else None
    rule = None if packet is None else classify_packet(rules, packet)
    expected = 3 if rule is None else HANDLES[rule.traffic_class]
    assert run(instructions(rules, HANDLES), received, priority=3) == (-1, expected)


@pytest.mark.parametrize("make", [ipv4, ipv6])
def test_marks_choose_the_class(make):
    found = [priority_of(make(UDP, dscp=dscp)) for dscp in (46, 18, 10, 1)]
    assert found == list(HANDLES.values())
    assert priority_of(make(UDP, dscp=8), priority=6) == 6


def test_ports_behind_options_and_extension_headers():
    flow = {"class": "batch", "proto": "udp", "dport": (5000,)}
    assert priority_of(ipv4(UDP, options=bytes(40)), flow) == HANDLES["batch"]
    headers = ((0, bytes(7)), (43, bytes(7)), (60, bytes(7)), (51, b"\x02" + bytes(14)), (44, bytes(7)), (60, bytes(7)))
    assert priority_of(ipv6(UDP, extensions=headers), flow) == HANDLES["batch"]
    assert priority_of(ipv6(UDP, extensions=(*headers, (60, bytes(7)))), flow) == 0


def test_later_fragments_have_no_ports_but_a_protocol():
    by_port = {"class": "batch", "proto": "udp", "dport": (5000,)}
    by_protocol = {"class": "background", "proto": "udp"}
    first, later = ipv4(UDP, fragment=0x2000), ipv4(UDP, fragment=0x2001)
    assert [priority_of(each, by_port, by_protocol) for each in (first, later)] == [
        HANDLES["batch"],
        HANDLES["background"],
    ]


def test_what_was_classified_before_tc_saw_it_keeps_its_class():
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    assert priority_of(ipv4(UDP, dscp=46), early, priority=0x51A0030) == 0x51A0030
    assert priority_of(ipv4(UDP, dscp=46), early, priority=0x5200030) == HANDLES["realtime"]
    assert priority_of(ipv4(UDP, dscp=46), priority=0x51A0030) == HANDLES["realtime"]


def test_the_name_is_the_program():
    rules = rule_table(policy_of())
    one, other = instructions(rules, HANDLES), instructions(rules, HANDLES | {"batch": 0x51A0031})
    assert program_name(one) == program_name(instructions(rules, HANDLES))
    assert program_name(one) != program_name(other)
    assert program_name(one).startswith("inferlane-")


def test_a_thousand_flows_are_a_program():
    flow = Flow(
        traffic_class="batch",
        proto=6,
        src="fd00::/32",
        dst="fd01::1/128",
        sport=((1, 9), (20, 29)),
        dport=tuple((each, each + 1) for each in range(1, 1000, 10)),
        dscp=18,
        before_nat=False,
    )
    policy = msgspec.structs.replace(policy_of(), flows=(flow,) * 1000)
    assert len(instructions(rule_table(policy), HANDLES)) // 8 < 1_000_000
