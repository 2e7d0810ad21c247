# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.settings import ClassSettings
from qos.tc.design.classifier import Packet, classify_packet, explain_packet, rule_table
from tests.fakes.link_policies import policy_of
from tests.fakes.packets import policies


def packet(**given: object) -> Packet:
    known = {"version": 4, "src": "10.0.0.1", "dst": "10.1.0.1", "dscp": 0, "proto": 17, "sport": 53, "dport": 5000}
    return Packet(**(known | given))


def class_of(asked: Packet, *flows: dict) -> str | None:
    rule = classify_packet(rule_table(policy_of(flows=flows)), asked)
    return None if rule is None else rule.traffic_class


@pytest.mark.parametrize(
    ("flow", "differently"),
    [
        ({"proto": "udp"}, {"proto": 6}),
        ({"proto": "udp"}, {"proto": None}),
        ({"src": "10.0.0.0/24"}, {"src": "10.0.1.0"}),
        ({"dst": "10.1.0.1/32"}, {"dst": "10.1.0.2"}),
        ({"src": "10.0.0.0/8"}, {"version": 6, "src": "fd00::1", "dst": "fd00::2"}),
        ({"proto": "udp", "sport": (53, "60-61")}, {"sport": 59}),
        ({"proto": "udp", "dport": ("4999-5000",)}, {"dport": 5001}),
        ({"proto": "udp", "dport": (5000,)}, {"dport": None}),
        ({"dscp": "DF"}, {"dscp": 2}),
    ],
)
def test_all_that_a_flow_says_must_hold(flow, differently):
    flow = {"class": "batch", **flow}
    assert class_of(packet(), flow) == "batch"
    assert class_of(packet(**differently), flow) is None


def test_the_first_flow_decides_before_any_mark():
    flows = {"class": "background", "proto": "udp", "dport": (5000,)}, {"class": "batch", "proto": "udp"}
    assert class_of(packet(dscp=46), *flows) == "background"
    assert class_of(packet(dscp=46, dport=1), *flows) == "batch"
    assert class_of(packet(dscp=46, proto=6), *flows) == "realtime"
    assert class_of(packet(dscp=63, proto=6), *flows) is None


def test_of_classes_with_one_mark_the_first_owns_it():
    classes = [
        ClassSettings(name="fast", dscp=46, deadline=1.0),
        ClassSettings(name="fleet", dscp=46, deadline=1.0, default=True),
    ]
    table = rule_table(policy_of(classes=classes))
    assert [(each.traffic_class, each.source) for each in table.marks] == [("fast", "the mark EF")]


def test_ranges_that_touch_are_one():
    flow = {"class": "batch", "proto": "tcp", "dport": ("20-30", 10, "31-40", "25-26", 11)}
    assert rule_table(policy_of(flows=(flow,))).flows[0].dport == ((10, 11), (20, 40))


@given(policies(), st.integers(0, 65535))
def test_merged_ranges_hold_the_same_ports(policy, port):
    for flow, rule in zip(policy.flows, rule_table(policy).flows, strict=True):
        for written, merged in ((flow.sport, rule.sport), (flow.dport, rule.dport)):
            assert any(a <= port <= b for a, b in written) == any(a <= port <= b for a, b in merged)


def test_only_flows_ask_for_the_protocol():
    assert not rule_table(policy_of()).needs_transport
    assert not rule_table(policy_of(flows=({"class": "batch", "src": "10.0.0.0/8"},))).needs_transport
    assert rule_table(policy_of(flows=({"class": "batch", "proto": "tcp"},))).needs_transport


def test_flows_before_nat_are_not_for_tc():
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    table = rule_table(policy_of(flows=(early, {"class": "background", "proto": "udp"})))
    assert table.earlier
    assert [each.source for each in table.flows] == ["flows[1]"]


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (packet(dscp=46), ("background", "flows[1]")),
        (packet(dscp=46, proto=6), ("realtime", "the mark EF")),
        (packet(dscp=8, proto=6), ("interactive", "no flow matches and no class owns the mark CS1")),
        (packet(src="192.0.2.1"), ("batch", "flows[2]")),
    ],
)
def test_every_packet_has_a_class_and_a_reason(asked, verdict):
    flows = (
        {"class": "batch", "proto": "udp", "dport": (9,)},
        {"class": "background", "proto": "udp"},
        {"class": "batch", "src": "192.0.2.0/24", "before_nat": True},
    )
    found = explain_packet(policy_of(flows=flows), asked)
    assert (found.traffic_class, found.because) == verdict
