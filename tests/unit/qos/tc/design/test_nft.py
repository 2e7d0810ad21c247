# SPDX-License-Identifier: Apache-2.0
"""The nftables table for flows before NAT: its rules, its order, and a name that follows its content."""

from __future__ import annotations

import pytest

from qos.tc.design.nft import (
    chain_name,
    early_flows,
    early_handles,
    ingress_loss,
    obstacle,
    replacing,
    ruleset,
)
from qos.tc.policy import Flow, Interface, LinkPolicy, Safety
from qos.tc.state import FOREIGN_TABLE, OUR_CHAIN

HANDLES = {"eth0": {"realtime": 0x51A0016, "batch": 0x51A0030}}


def flow(traffic_class: str = "realtime", **given) -> Flow:
    silent = {"proto": None, "src": None, "dst": None, "sport": (), "dport": (), "dscp": None, "before_nat": True}
    return Flow(traffic_class=traffic_class, **{**silent, **given})


def policy(*flows: Flow) -> LinkPolicy:
    safety = Safety(confirm_s=120, drift="repair", repairs_per_10m=5, on_exit="keep")
    return LinkPolicy(classes=(), interfaces=(), flows=flows, safety=safety)


def link(name: str = "eth0") -> Interface:
    return Interface(
        name=name,
        netns=None,
        egress=10**7,
        ingress=None,
        overhead=0,
        engine="auto",
        refuse_degraded=False,
        adopt=False,
    )


def rules(*flows: Flow, handles=HANDLES) -> list[str]:
    """Without their numbers."""
    lines = ruleset(policy(*flows), handles).splitlines()
    return [line.strip().rpartition(" comment ")[0] for line in lines if "oifname" in line]


@pytest.mark.parametrize(
    ("given", "matches"),
    [
        ({"src": "10.20.3.0/24"}, ["ip saddr 10.20.3.0/24"]),
        ({"src": "fd00:20::/32", "proto": 6, "sport": ((873, 873),)},
         ["ip6 saddr fd00:20::/32 meta l4proto 6 th sport { 873 }"]),
        ({"dst": "fd00:20::/32"},
         ["ct direction original ct original ip6 daddr fd00:20::/32",
          "ct direction reply ct reply ip6 daddr fd00:20::/32"]),
        ({"src": "10.0.0.0/8", "proto": 17, "dport": ((5010, 5020), (5000, 5000), (5015, 5030))},
         ["ip saddr 10.0.0.0/8 meta l4proto 17 ct direction original ct original proto-dst { 5000, 5010-5030 }",
          "ip saddr 10.0.0.0/8 meta l4proto 17 ct direction reply ct reply proto-dst { 5000, 5010-5030 }"]),
        ({"dscp": 46}, ["ip dscp 46", "ip6 dscp 46"]),
        ({"dscp": 46, "src": "10.0.0.0/8"}, ["ip saddr 10.0.0.0/8 ip dscp 46"]),
    ],
)  # fmt: skip
def test_a_flow_compares_what_it_gives_with_what_a_packet_came_with(given, matches):
    assert rules(flow(**given)) == [f'oifname "eth0" {each} meta priority set 51a:16 accept' for each in matches]


def test_the_first_flow_that_matches_decides_on_every_device():
    found = rules(flow("batch", proto=6), flow(proto=17), handles={**HANDLES, "eth1": {"realtime": 0x51B0016}})
    assert [each.split()[1:] for each in found] == [
        ['"eth0"', *["meta", "l4proto", "6", "meta", "priority", "set", "51a:30", "accept"]],
        ['"eth0"', *["meta", "l4proto", "17", "meta", "priority", "set", "51a:16", "accept"]],
        ['"eth1"', *["meta", "l4proto", "17", "meta", "priority", "set", "51b:16", "accept"]],
    ]  # fmt: skip


def test_each_rule_has_its_number_so_that_one_that_is_missing_is_missed():
    lines = ruleset(policy(flow(dscp=46), flow("batch", proto=6)), HANDLES).splitlines()
    assert [line[line.index("comment") :] for line in lines if "comment" in line] == [
        'comment "1 of 3"', 'comment "2 of 3"', 'comment "3 of 3"'
    ]  # fmt: skip


def test_without_such_flows_there_is_no_table():
    after_nat = flow(proto=17, before_nat=False)
    assert ruleset(policy(after_nat), HANDLES) == ""
    assert ruleset(policy(flow(proto=17)), {}) == ""
    assert chain_name("") == ""
    assert early_flows(policy(after_nat)) == ""
    assert early_flows(policy(after_nat, flow(), flow("batch"))) == "flows[1], flows[2]"


def test_the_chains_name_follows_its_content_and_nothing_else():
    one, same, other = (ruleset(policy(flow(proto=proto)), HANDLES) for proto in (6, 6, 17))
    assert chain_name(one) == chain_name(same) != chain_name(other)
    assert chain_name(one).startswith(OUR_CHAIN)


def test_other_handles_make_another_table():
    moved = {"eth0": {"realtime": 0x51B0016}}
    assert chain_name(ruleset(policy(flow()), HANDLES)) != chain_name(ruleset(policy(flow()), moved))


def test_a_table_is_replaced_in_one_transaction_whether_or_not_there_is_one():
    assert replacing("table x {}").splitlines() == [
        "add table inet inferlane", "delete table inet inferlane", "table x {}"
    ]  # fmt: skip


def test_a_priority_without_a_major_gets_the_roots_so_that_the_classifier_lets_it_be():
    given = {"realtime": 6, "batch": 0x51A0030}
    assert early_handles(0x51A0000, given) == {"realtime": 0x51A0006, "batch": 0x51A0030}


@pytest.mark.parametrize(
    ("name", "engine", "lacks", "table", "severity", "said"),
    [
        ("eth0", "marks", "", "", "warning", "makes no queues"),
        ("eth0", "htb", "nft is not installed: apt install nftables", "", "degraded", "apt install nftables"),
        ("eth0", "htb", "", FOREIGN_TABLE, "degraded", "inet inferlane is not ours; rename it"),
        ('e"0', "htb", "", "", "degraded", "rename it: ip link set"),
        ("eth*", "htb", "", "", "degraded", "rename it: ip link set"),
        ("e\\0", "htb", "", "", "degraded", "rename it: ip link set"),
    ],
)
def test_what_is_in_the_way_is_told_with_its_remedy(name, engine, lacks, table, severity, said):
    found = obstacle(link(name), engine, lacks=lacks, table=table)
    assert found is not None
    assert found[0] == severity
    assert said in found[1]


def test_a_table_of_ours_or_none_is_in_nobodys_way():
    assert obstacle(link(), "htb", lacks="", table="") is None
    assert obstacle(link(), "cake", lacks="", table=f"{OUR_CHAIN}1") is None


def test_what_comes_in_is_told_to_be_left_out():
    assert "so flows[1] are not seen there" in ingress_loss("flows[1]")
