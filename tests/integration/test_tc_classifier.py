# SPDX-License-Identifier: Apache-2.0
"""The classifier in the real kernel: its verifier, its answers for packets, and the classes that packets land in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest
from hypothesis import given

from qos.tc.design.classifier import classify_packet, rule_table
from qos.tc.design.program import instructions, program_name
from qos.tc.errors import KernelError
from qos.tc.kernel.bpf import load, run
from qos.tc.policy import Flow, LinkClass
from tests.fakes.link_policies import policy_of
from tests.fakes.packets import frame, frames, ipv4, ipv6, policies, read
from tests.fakes.shaped_link import ShapedLink, datagrams, shaped_link

pytestmark = pytest.mark.needs_root

HANDLES = {"realtime": 0x51A0016, "interactive": 0x51A0024, "batch": 0x51A0030, "background": 0x51A0042}
UDP = b"\x00\x35\x13\x88"


@contextmanager
def loaded(program: bytes) -> Iterator[int]:
    fd = load(program, program_name(program))
    try:
        yield fd
    finally:
        os.close(fd)


@given(policies(), frames(whole_headers=True))
def test_the_kernel_says_what_the_reference_says(policy, received):
    rules = rule_table(policy)
    packet = read(received[14:]) if received[12:14] in (b"\x08\x00", b"\x86\xdd") else None
    rule = None if packet is None else classify_packet(rules, packet)
    expected = 3 if rule is None else HANDLES[rule.traffic_class]
    with loaded(instructions(rules, HANDLES)) as fd:
        assert run(fd, received, priority=3) == (-1, expected)


def test_what_has_a_class_already_keeps_it_where_nftables_classifies():
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    program = instructions(rule_table(policy_of(flows=(early,))), HANDLES, major=0x51A)
    with loaded(program) as fd:
        marked = frame(ipv4(UDP, dscp=46))
        assert [run(fd, marked, priority=each)[1] for each in (0x51A0030, 0x51B0030, 6)] == [
            0x51A0030,
            HANDLES["realtime"],
            HANDLES["realtime"],
        ]


def test_a_thousand_classes_with_as_many_flows_pass_the_verifier():
    classes = tuple(
        LinkClass(
            name=f"c{each}",
            rank=each,
            dscp=each % 64,
            owns_dscp=each < 64,
            priority=4,
            share=0.001,
            ceiling=1.0,
            queue_s=0.1,
            default=each == 0,
        )
        for each in range(1000)
    )
    flows = tuple(
        Flow(
            traffic_class=f"c{each}",
            proto=17,
            src=f"10.{each >> 8}.{each & 255}.0/24" if each % 2 else f"fd00:{each:x}::/32",
            dst=None if each % 3 else "10.1.0.0/16" if each % 2 else "fd01::/64",
            sport=((5, 9), (11, 11)) if each % 5 else (),
            dport=tuple((8 * port + each, 8 * port + each + 3) for port in range(1, 9)),
            dscp=None if each % 7 else 46,
            before_nat=False,
        )
        for each in range(1000)
    )
    rules = rule_table(msgspec.structs.replace(policy_of(), classes=classes, flows=flows))
    handles = {each.name: 0x51A0000 | (each.rank + 1) << 4 for each in classes}
    with loaded(instructions(rules, handles)) as fd:
        last = ipv4(b"\x00\x05" + (8 + 999).to_bytes(2, "big"), src="10.3.231.9", dst="10.1.2.3")
        assert run(fd, frame(last)) == (-1, handles["c999"])
        assert run(fd, frame(ipv6(UDP, src="fe80::1", dscp=63))) == (-1, handles["c63"])


def test_what_the_verifier_refuses_is_told_in_its_words():
    with pytest.raises(KernelError, match=r"load the classifier of 1 instructions: .*R0"):
        load(bytes.fromhex("9500000000000000"), "broken")


@pytest.fixture
def site() -> Iterator[ShapedLink]:
    with shaped_link("classifier") as made:
        yield made


FLOW = {"class": "batch", "proto": "udp", "dport": (5000, "6000-6010")}
CASES = ((46, 9, "realtime"), (18, 9, "interactive"), (1, 9, "background"), (46, 6003, "batch"), (63, 9, "interactive"))


@pytest.mark.parametrize("version", [4, 6])
def test_packets_land_in_the_class_of_their_mark_or_their_flow(site, version):
    site.shape(policy_of(flows=(FLOW,)))
    for dscp, port, name in CASES:
        send = partial(datagrams, site.host, site.other, dscp, port=port, version=version)
        assert site.classes_of(send) == {name}


@pytest.mark.parametrize("version", [4, 6])
def test_filters_on_our_root_say_the_same_where_clsact_cannot_be(site, version):
    site.host.tc("qdisc add dev eth0 ingress")
    compiled = site.shape(policy_of(flows=(FLOW,)))
    assert compiled.programs == {}
    for dscp, port, name in CASES:
        send = partial(datagrams, site.host, site.other, dscp, port=port, version=version)
        assert site.classes_of(send) == {name}


@pytest.mark.parametrize("somebodys", ["", "qdisc add dev eth0 ingress"])
def test_what_comes_in_is_classified_on_its_ifb(site, somebodys):
    if somebodys:
        site.host.tc(somebodys)
    site.shape(policy_of({"ingress": "10mbit"}, flows=(FLOW,)))
    for version in (4, 6):
        for dscp, port, name in CASES:
            send = partial(datagrams, site.other, site.host, dscp, port=port, version=version)
            assert site.classes_of(send, device="ifb-eth0") == {name}


def test_another_policy_classifies_at_once_by_the_same_filter(site):
    site.shape(policy_of())
    flow = {"class": "background", "proto": "udp", "dport": (9,)}
    send = partial(datagrams, site.host, site.other, 10)
    assert site.classes_of(send) == {"batch"}
    site.shape(policy_of(flows=(flow,)))
    assert site.classes_of(send) == {"background"}
    assert site.host.tc("filter show dev eth0 egress").count("inferlane-") == 1
