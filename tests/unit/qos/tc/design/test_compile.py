# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qos.tc.design.compile import CannotKeepError, Compiled, compile_policy, ifb_name
from qos.tc.design.program import program_name
from qos.tc.policy import Flow, LinkPolicy
from qos.tc.reconcile.plan import agree
from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    FOREIGN_TABLE,
    INGRESS_HOOK,
    OUR_FILTERS,
    ROOT,
    U32,
    Bpf,
    Clsact,
    Filter,
    Flower,
    FqCodel,
    Htb,
    LinkState,
    NetworkState,
    Qdisc,
    Redirect,
    Tbf,
    Unread,
    UnreadFilter,
)
from tests.fakes.kernels import FULL, SMALL, link_facts
from tests.fakes.link_policies import policy_of
from tests.fakes.packets import policies

EMPTY = NetworkState()
ETH0 = {"eth0": link_facts()}


def compiled(policy: LinkPolicy, **given: Any) -> Compiled:
    known: dict[str, Any] = {"facts": ETH0, "capabilities": FULL, "observed": EMPTY}
    return compile_policy(policy, None, **(known | given))


def refusal(policy: LinkPolicy, **given: Any) -> str:
    with pytest.raises(CannotKeepError) as refused:
        compiled(policy, **given)
    return str(refused.value)


def seen(*qdiscs: Qdisc, filters: tuple[Filter, ...] = ()) -> NetworkState:
    return NetworkState(links=(LinkState(name="eth0", qdiscs=qdiscs, filters=filters),))


def foreign(kind: str, parent: int = ROOT) -> Qdisc:
    return Qdisc(0xFFFF0000 if parent == CLSACT else 0x80010000, parent, Unread(kind, None))


def test_a_link_gets_a_tree_and_a_classifier():
    found = compiled(policy_of())
    (link,) = found.desired.links
    assert [type(each.options) for each in link.qdiscs] == [Htb, *[Tbf, FqCodel] * 4, Clsact]
    assert link.qdiscs[-1] == Qdisc(0xFFFF0000, CLSACT, Clsact())
    (classifier,) = link.filters
    assert (classifier.parent, classifier.pref, classifier.protocol, classifier.handle) == (EGRESS_HOOK, 0x51A0, 3, 1)
    assert isinstance(classifier.options, Bpf)
    (program,) = found.programs.values()
    assert found.programs.keys() == {classifier.options.name} == {program_name(program)}
    assert {found.labels["eth0", each] for each in (0x51A0016, 0x160000, 0x40160000)} == {"realtime"}


def test_a_slow_link_cuts_trains_in_its_leaves_and_leaves_the_device_alone():
    (link,) = compiled(policy_of()).desired.links
    assert link.gso_max_size is None
    (splitter,) = [each for each in link.qdiscs if each.handle == 0x160000]
    # 1.6 KB: what a packet is, and less than two.
    assert splitter.options.rate * splitter.options.burst * 64 // 10**9 in range(1514, 2 * 1514)
    assert next(each for each in link.qdiscs if each.handle == 0x40160000).parent == 0x160001


def test_a_fast_link_lets_trains_be():
    (link,) = compiled(policy_of({"egress": "2gbit"})).desired.links
    assert [type(each.options) for each in link.qdiscs] == [Htb, *[FqCodel] * 4, Clsact]
    assert link.gso_max_size is None


def test_without_tbf_the_stack_is_told_to_make_short_trains_and_what_is_lost_is_said():
    found = compiled(policy_of(), capabilities=replace(FULL, qdiscs={**FULL.qdiscs, "tbf": "unknown"}))
    (link,) = found.desired.links
    assert link.gso_max_size == 1514
    assert [type(each.options) for each in link.qdiscs] == [Htb, *[FqCodel] * 4, Clsact]
    assert "CONFIG_NET_SCH_TBF=m gives it; trains of packets go as one" in found.notes[0].text
    assert found.notes[0].severity == "degraded"


def test_what_comes_in_is_queued_on_an_ifb_with_the_same_classes():
    found = compiled(policy_of({"ingress": "10mbit"}))
    ifb, link = found.desired.links
    assert (ifb.name, ifb.ifb_for, ifb.gso_max_size) == ("ifb-eth0", "eth0", None)
    assert link.filters[-1] == Filter(INGRESS_HOOK, OUR_FILTERS[0], 3, 0, Redirect("ifb-eth0"))
    assert [each.handle for each in ifb.classes] == [each.handle for each in link.classes]
    assert (ifb.classes[0].options.rate, link.classes[0].options.rate) == (1_250_000, 2_500_000)
    assert len(found.programs) == 1
    assert link.qdiscs.count(Qdisc(0xFFFF0000, CLSACT, Clsact())) == 1
    assert found.labels["ifb-eth0", 0x51A0016] == "realtime"


@pytest.mark.parametrize(
    ("interface", "name"),
    [("eth0", "ifb-eth0"), ("elevenchars", "ifb-elevenchars"), ("interface000001", "ifb-interf-")],
)
def test_an_ifb_has_a_name_that_fits(interface, name):
    assert ifb_name(interface).startswith(name)
    assert len(ifb_name(interface)) <= 15
    assert ifb_name("interface000001") != ifb_name("interface000002")


def test_only_the_interfaces_of_the_namespace_are_meant():
    policy = policy_of({"netns": "edge"}, {"name": "eth1"})
    assert compiled(policy, facts={"eth1": link_facts("eth1")}).desired.links[0].name == "eth1"
    there = compile_policy(policy, "edge", facts=ETH0, capabilities=FULL, observed=NetworkState(netns="edge"))
    assert (there.desired.netns, [each.name for each in there.desired.links]) == ("edge", ["eth0"])


def test_a_missing_interface_is_named_with_what_could_be_meant():
    policy = policy_of({"name": "eht0"})
    assert refusal(policy) == "interfaces[0] eht0: no such interface; did you mean eth0?; `ip link` lists them"
    found = compiled(policy, missing_ok=True)
    assert found.desired.links == ()
    assert [(each.severity, each.where) for each in found.notes] == [("warning", "interfaces[0] eht0")]


def test_somebodys_root_is_left_alone_unless_adopted():
    observed = seen(foreign("tbf"))
    assert refusal(policy_of(), observed=observed) == (
        "interfaces[0] eth0: its root qdisc tbf 8001: is not ours; say adopt: true to replace it, or remove it: "
        "tc qdisc del dev eth0 root"
    )
    assert compiled(policy_of({"adopt": True}), observed=observed).desired.links[0].classes
    assert compiled(policy_of({"engine": "marks"}), observed=observed).desired.links == (LinkState(name="eth0"),)


def test_all_that_cannot_be_is_said_at_once():
    policy = policy_of({"name": "a"}, {"name": "b"}, {})
    assert [line.partition(":")[0] for line in refusal(policy, observed=seen(foreign("mq"))).splitlines()] == [
        "interfaces[0] a",
        "interfaces[1] b",
        "interfaces[2] eth0",
    ]


def test_another_default_class_needs_another_root():
    first = compiled(policy_of()).desired
    classes = [msgspec.structs.replace(each, default=each.rank == 2) for each in policy_of().classes]
    moved = msgspec.structs.replace(policy_of(), classes=tuple(classes))
    second = compiled(moved, observed=first).desired
    assert [each.links[0].qdiscs[0].handle for each in (first, second)] == [0x51A0000, 0x51B0000]
    assert compiled(moved, observed=second).desired == second
    assert compiled(policy_of(), observed=second).desired == first
    # Unlike HTB's, other roots change in place.
    cake = compiled(policy_of({"engine": "cake"})).desired
    faster = compiled(policy_of({"engine": "cake", "egress": "30mbit"}), observed=cake).desired
    assert faster.links[0].qdiscs[0].handle == cake.links[0].qdiscs[0].handle
    assert compiled(policy_of(), observed=cake).desired.links[0].qdiscs[0].handle == 0x51B0000


def test_without_clsact_filters_hang_on_our_root():
    found = compiled(policy_of(), observed=seen(foreign("ingress", CLSACT)))
    (link,) = found.desired.links
    assert {each.parent for each in link.filters} == {0x51A0000}
    assert all(isinstance(each.options, Flower) for each in link.filters)
    assert not any(isinstance(each.options, Clsact) for each in link.qdiscs)
    assert found.programs == {}
    (note,) = (each for each in found.notes if each.severity == "degraded")
    assert "clsact: an ingress qdisc, not ours, is in its place; using flower" in note.text
    small = compiled(policy_of(), capabilities=SMALL, observed=seen(foreign("ingress", CLSACT)))
    assert all(isinstance(each.options, U32) for each in small.desired.links[0].filters)


def test_filters_of_others_that_would_see_nothing_of_what_comes_in_are_named():
    def warned(pref: int, hook: int = INGRESS_HOOK) -> list[str]:
        theirs = Filter(hook, pref, 3, 1, UnreadFilter("bpf", None))
        state = seen(Qdisc(0xFFFF0000, CLSACT, Clsact()), filters=(theirs,))
        notes = compiled(policy_of({"ingress": "10mbit"}), observed=state).notes
        return [each.text for each in notes if "will see nothing" in each.text]

    (said,) = warned(49152)
    assert said.startswith("filters that are not ours, with pref 49152 at its ingress hook, will see nothing: packets")
    assert warned(1) == warned(49152, EGRESS_HOOK) == []


def test_what_comes_in_passes_the_hook_of_an_ingress_qdisc_as_well():
    found = compiled(policy_of({"ingress": "1mbit"}), observed=seen(foreign("ingress", CLSACT)))
    ifb, link = found.desired.links
    assert link.filters[-1].options == Redirect("ifb-eth0")
    assert not any(isinstance(each.options, Clsact) for each in link.qdiscs)
    assert isinstance(ifb.filters[0].options, Bpf)


def test_an_ifbs_name_that_somebody_else_has():
    facts = ETH0 | {"ifb-eth0": link_facts("ifb-eth0", kind="ifb")}
    policy = policy_of({"ingress": "1mbit"})
    assert refusal(policy, facts=facts) == (
        "interfaces[0] eth0: ingress needs the name ifb-eth0, and that device is not ours; rename or remove it"
    )
    ours = NetworkState(links=(LinkState(name="ifb-eth0", ifb_for="eth0"),))
    assert compiled(policy, facts=facts, observed=ours).desired.links[0].name == "ifb-eth0"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"engine": "cake"},
            "engine cake: it has four fixed tins, so share, ceiling and queue of classes are not kept",
        ),
        ({"engine": "ets"}, "engine ets: it has no rate, so egress, ceiling and overhead are not kept"),
        ({"engine": "fq"}, "engine fq: it has three bands and no rate, so egress, share"),
        ({"engine": "ets", "ingress": "1mbit"}, "ingress is not shaped: ets keeps no rate"),
    ],
)
def test_each_key_that_an_engine_cannot_keep_is_said_or_refused(given, words):
    notes = [each.text for each in compiled(policy_of(given)).notes if each.severity == "degraded"]
    assert any(each.startswith(words) for each in notes)
    assert all("{" not in each for each in notes)
    refused = refusal(policy_of(given | {"degrade": "refuse"}))
    assert f"interfaces[0] eth0: {words}" in refused
    assert all(line.endswith("; degrade: allow accepts that") for line in refused.splitlines())


def test_refusing_what_is_lost_is_not_refusing_warnings():
    assert compiled(policy_of({"degrade": "refuse"}), capabilities=SMALL).notes


def test_flows_that_no_filter_can_hold_are_named():
    flow = {"class": "batch", "proto": "udp", "dport": tuple(range(1, 9999, 2))}
    found = compiled(policy_of(flows=(flow,)), observed=seen(foreign("ingress", CLSACT)))
    assert any(each.text == "too much for flower, so these are not classified: flows[0]" for each in found.notes)


def test_a_program_that_no_kernel_takes_is_refused():
    ports = tuple((each, each) for each in range(1, 20000, 2))
    flow = Flow(
        traffic_class="batch", proto=17, src=None, dst=None, sport=ports, dport=ports, dscp=None, before_nat=False
    )
    policy = msgspec.structs.replace(policy_of(), flows=(flow,) * 60)
    assert "BPF instructions, the kernel takes 1000000; write fewer flows" in refusal(policy)


@given(
    policies(),
    st.sampled_from(("auto", "htb", "cake", "ets", "fq", "marks")),
    st.sampled_from((FULL, SMALL)),
    st.none() | st.sampled_from(("16kbit", "100gbit")),
    st.booleans(),
)
def test_compiled_again_on_its_own_result_nothing_is_left_to_do(policy, engine, capabilities, ingress, strangers):
    policy = msgspec.structs.replace(
        policy, interfaces=policy_of({"engine": engine, "egress": "32kbit", "adopt": True}).interfaces
    )
    if ingress:
        wanted = policy_of({"engine": engine, "egress": "32kbit", "ingress": ingress, "adopt": True})
        policy = msgspec.structs.replace(policy, interfaces=wanted.interfaces)
    observed = (
        seen(foreign("sfq"), filters=(Filter(EGRESS_HOOK, 7, 3, 1, UnreadFilter("bpf", b"")),)) if strangers else EMPTY
    )
    first = compiled(policy, capabilities=capabilities, observed=observed)
    size = first.desired.links[-1].gso_max_size or 65536
    facts = {each.name: link_facts(each.name) for each in first.desired.links} | {"eth0": link_facts(gso_max_size=size)}
    again = compiled(policy, capabilities=capabilities, facts=facts, observed=first.desired)
    assert agree(first.desired, again.desired)
    assert again.programs == first.programs
    handles = {each.handle for link in first.desired.links for each in (*link.qdiscs, *link.classes)}
    assert {handle for _, handle in first.labels if handle >> 16 not in (0x51A, 0x51B)} <= handles


EARLY = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}


def table_of(found: Compiled) -> str:
    return found.programs[found.desired.table].decode() if found.desired.table else ""


def early_notes(found: Compiled) -> list[tuple[str, str]]:
    return [(each.severity, each.text) for each in found.notes if "flows[0]" in each.text]


@pytest.mark.parametrize(
    ("engine", "priority"), [("htb", "51a:30"), ("cake", "51a:1"), ("ets", "51a:3"), ("fq", "51a:2")]
)
def test_a_flow_before_nat_gets_the_priority_of_its_class_in_every_engine(engine, priority):
    found = compiled(policy_of({"engine": engine}, flows=(EARLY,)))
    assert f'oifname "eth0" ip saddr 10.0.0.0/8 meta priority set {priority} accept' in table_of(found)
    assert early_notes(found) == []


def test_without_such_flows_there_is_no_table():
    assert compiled(policy_of(flows=({**EARLY, "before_nat": False},))).desired.table == ""


def test_the_table_has_the_numbers_of_the_root_that_is_to_be():
    moved = seen(Qdisc(0x51A0000, ROOT, Htb(0x30)))
    first, second = (compiled(policy_of(flows=(EARLY,)), observed=each) for each in (EMPTY, moved))
    assert "51b:30" in table_of(second)
    assert first.desired.table != second.desired.table


def test_what_comes_in_is_not_in_the_table_and_this_is_told():
    found = compiled(policy_of({"ingress": "10mbit"}, flows=(EARLY,)))
    assert "ifb" not in table_of(found)
    ((severity, said),) = early_notes(found)
    assert severity == "warning" and said.startswith("ingress: ")


def test_what_nftables_lacks_is_told_and_the_rest_is_kept():
    lacking = replace(FULL, nftables="the program nft is not installed: apt install nftables")
    found = compiled(policy_of(flows=(EARLY,)), capabilities=lacking)
    assert found.desired.table == "" and found.desired.links[0].classes
    ((severity, said),) = early_notes(found)
    assert severity == "degraded" and said.endswith("apt install nftables")
    refused = refusal(policy_of({"degrade": "refuse"}, flows=(EARLY,)), capabilities=lacking)
    assert "apt install nftables; degrade: allow accepts that" in refused


def test_somebody_elses_table_of_our_name_is_told_and_not_wanted():
    found = compiled(policy_of(flows=(EARLY,)), observed=NetworkState(table=FOREIGN_TABLE))
    assert found.desired.table == ""
    assert "is not ours; rename it" in early_notes(found)[0][1]


def test_with_marks_alone_there_is_nothing_to_bring_a_flow_to():
    found = compiled(policy_of({"engine": "marks", "ingress": "10mbit"}, flows=(EARLY,)))
    assert found.desired.table == ""
    ((severity, said),) = early_notes(found)
    assert severity == "warning" and "engine marks" in said
