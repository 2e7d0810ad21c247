# SPDX-License-Identifier: Apache-2.0
"""The nftables table for flows before NAT: its rules, its order, and a name that follows its content."""

from __future__ import annotations

import pytest

from qos.tc.design.nft import chain_name, replacing, ruleset
from qos.tc.policy import Flow, LinkPolicy, Safety

HANDLES = {"eth0": {"realtime": 0x51A0016, "batch": 0x51A0030}}


def flow(traffic_class: str = "realtime", **given) -> Flow:
    silent = {"proto": None, "src": None, "dst": None, "sport": (), "dport": (), "dscp": None, "before_nat": True}
    return Flow(traffic_class=traffic_class, **{**silent, **given})


def policy(*flows: Flow) -> LinkPolicy:
    safety = Safety(confirm_s=120, drift="repair", repairs_per_10m=5, on_exit="keep")
    return LinkPolicy(classes=(), interfaces=(), flows=flows, safety=safety)


def rules(*flows: Flow, handles=HANDLES) -> list[str]:
    return [line.strip() for line in ruleset(policy(*flows), handles).splitlines() if "oifname" in line]


@pytest.mark.parametrize(
    ("given", "matches"),
    [
        ({"src": "10.20.3.0/24"}, ["ct original ip saddr 10.20.3.0/24"]),
        ({"dst": "fd00:20::/32"}, ["ct original ip6 daddr fd00:20::/32"]),
        ({"proto": 17, "dport": ((5000, 5000), (5010, 5020))},
         ["meta l4proto 17 ct original proto-dst { 5000, 5010-5020 }"]),
        ({"proto": 6, "sport": ((873, 873),)}, ["meta l4proto 6 ct original proto-src { 873 }"]),
        ({"dscp": 46}, ["ip dscp 46", "ip6 dscp 46"]),
        ({"dscp": 46, "src": "10.0.0.0/8"}, ["ct original ip saddr 10.0.0.0/8 ip dscp 46"]),
    ],
)  # fmt: skip
def test_a_flow_compares_what_it_gives_with_the_addresses_before_translation(given, matches):
    assert rules(flow(**given)) == [f'oifname "eth0" {each} meta priority set 51a:16 accept' for each in matches]


def test_the_first_flow_that_matches_decides_on_every_device():
    found = rules(flow("batch", proto=6), flow(proto=17), handles={**HANDLES, "eth1": {"realtime": 0x51B0016}})
    assert [each.split()[1:] for each in found] == [
        ['"eth0"', *["meta", "l4proto", "6", "meta", "priority", "set", "51a:30", "accept"]],
        ['"eth0"', *["meta", "l4proto", "17", "meta", "priority", "set", "51a:16", "accept"]],
        ['"eth1"', *["meta", "l4proto", "17", "meta", "priority", "set", "51b:16", "accept"]],
    ]  # fmt: skip


def test_without_such_flows_there_is_no_table():
    after_nat = flow(proto=17, before_nat=False)
    assert ruleset(policy(after_nat), HANDLES) == ""
    assert chain_name("") == ""


def test_the_chains_name_follows_its_content_and_nothing_else():
    one, same, other = (ruleset(policy(flow(proto=proto)), HANDLES) for proto in (6, 6, 17))
    assert chain_name(one) == chain_name(same) != chain_name(other)


def test_a_table_is_replaced_in_one_transaction_whether_or_not_there_is_one():
    assert replacing("table x {}").splitlines() == [
        "add table inet inferlane", "delete table inet inferlane", "table x {}"
    ]  # fmt: skip
