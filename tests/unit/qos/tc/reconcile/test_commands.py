# SPDX-License-Identifier: Apache-2.0
"""Steps as people read them. That tc(8) takes the commands is shown where there is a kernel."""

from __future__ import annotations

import pytest
from hypothesis import given

from qos.tc.reconcile.commands import describe, symbol, tc_commands
from qos.tc.reconcile.plan import Device, Gso, Step, Subject, Table, Verb, plan
from qos.tc.state import (
    EGRESS_HOOK,
    INGRESS_HOOK,
    ROOT,
    U32,
    Bfifo,
    Bpf,
    Cake,
    Ets,
    Filter,
    Flower,
    Fq,
    Htb,
    HtbClass,
    NetworkState,
    Qdisc,
    Redirect,
    TcClass,
    Unread,
)
from tests.fakes.tc_states import CLSACT_QDISC, desired_states, fq_codel, observed_states

REALTIME = HtbClass(rate=750_000, ceil=2_500_000, burst=31_250, cburst=15_625, prio=0, quantum=1514, overhead=24)
FASTER = HtbClass(rate=875_000, ceil=2_500_000, burst=31_250, cburst=15_625, prio=0, quantum=1514, overhead=24)
LABELS = {("eth0", 0x51A0016): "realtime", ("eth0", 0x160000): "realtime"}


def step(verb: Verb, subject: Subject, before: Subject | None = None) -> Step:
    return Step(verb=verb, device="eth0", subject=subject, before=before)


@pytest.mark.parametrize(
    ("subject", "command"),
    [
        (Qdisc(0x51A0000, ROOT, Htb(0x24)), "qdisc add dev eth0 root handle 51a: htb default 0x24"),
        (Qdisc(0x160000, 0x51A0016, Bfifo(9000)), "qdisc add dev eth0 parent 51a:16 handle 16: bfifo limit 9000"),
        (
            Qdisc(0x160000, 0x51A0016, fq_codel()),
            "qdisc add dev eth0 parent 51a:16 handle 16: fq_codel limit 1024 target 4999us interval 99999us "
            "quantum 1514 memory_limit 33554432 ecn",
        ),
        (
            Qdisc(0x51A0000, ROOT, Cake(2_500_000, 1, 24)),
            "qdisc add dev eth0 root handle 51a: cake bandwidth 20000000bit diffserv4 overhead 24",
        ),
        (
            Qdisc(0x51A0000, ROOT, Ets(3, 1, (3000, 1500), (2, 1, 0) + (2,) * 13)),
            "qdisc add dev eth0 root handle 51a: ets bands 3 strict 1 quanta 3000 1500 "
            "priomap 2 1 0 2 2 2 2 2 2 2 2 2 2 2 2 2",
        ),
        (Qdisc(0x51A0000, ROOT, Fq(10000, 100)), "qdisc add dev eth0 root handle 51a: fq limit 10000 flow_limit 100"),
        (
            Qdisc(0x10000, ROOT, Unread("tbf", b"...")),
            "qdisc add dev eth0 root handle 1: tbf  # with the options that it had",
        ),
        (CLSACT_QDISC, "qdisc add dev eth0 clsact"),
        (
            TcClass(0x51A0016, 0x51A0001, REALTIME),
            "class add dev eth0 parent 51a:1 classid 51a:16 htb rate 6000000bit ceil 20000000bit "
            "burst 1500 cburst 2500 prio 0 quantum 1514 overhead 24",
        ),
        (
            Filter(0x51A0000, 1, 0x0800, 0x80000801, U32(((0, 0xB80000, 0xFC0000),), 0x51A0016)),
            "filter add dev eth0 parent 51a: pref 1 protocol ip handle 800:0:801 u32 "
            "match u32 0x00b80000 0x00fc0000 at 0 flowid 51a:16",
        ),
        (
            Filter(0x51A0000, 2, 0x86DD, 1, Flower(0x51A0016, dscp=46, ip_proto=17, src="fd00::/8", dport=(53, 60))),
            "filter add dev eth0 parent 51a: pref 2 protocol ipv6 handle 0x1 flower "
            "ip_proto udp src_ip fd00::/8 dst_port 53-60 ip_tos 0xb8/0xfc classid 51a:16",
        ),
        (
            Filter(INGRESS_HOOK, 0x51A0, 3, 0, Redirect("ifb-eth0")),
            "filter add dev eth0 ingress pref 20896 protocol all matchall action mirred egress redirect dev ifb-eth0",
        ),
        (
            Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-0123456789ab")),
            "filter add dev eth0 egress pref 20896 protocol all handle 0x1 bpf direct-action "
            "object-pinned /sys/fs/bpf/inferlane-0123456789ab  # which we load, nobody pins it",
        ),
    ],
)
def test_the_command_of_each_kind(subject: Subject, command: str) -> None:
    assert tc_commands(step(Verb.ADD, subject), None) == [f"tc {command}"]


def test_the_other_verbs_and_a_namespace() -> None:
    leaf = Qdisc(0x160000, 0x51A0016, Bfifo(9000))
    one = TcClass(0x51A0016, 0x51A0001, REALTIME)
    match = Filter(0x51A0000, 1, 0x0800, 0x80000801, U32((), 0x51A0016))
    assert tc_commands(step(Verb.DELETE, leaf), "blue") == ["tc -n blue qdisc del dev eth0 parent 51a:16 handle 16:"]
    assert tc_commands(step(Verb.DELETE, one), None) == ["tc class del dev eth0 parent 51a:1 classid 51a:16"]
    assert tc_commands(step(Verb.DELETE, match), None) == [
        "tc filter del dev eth0 parent 51a: pref 1 protocol ip handle 800:0:801 u32"
    ]
    assert tc_commands(step(Verb.DELETE, CLSACT_QDISC), None) == ["tc qdisc del dev eth0 clsact"]
    assert tc_commands(step(Verb.DRAIN, one), None)[0].startswith("# wait until class 51a:16 of eth0 is empty: tc -s")
    assert tc_commands(step(Verb.ADD, Device("ifb-eth0", "eth0")), "blue") == [
        "ip -n blue link add name ifb-eth0 type ifb",
        "ip -n blue link set dev ifb-eth0 alias 'inferlane ingress of eth0' up",
    ]
    assert tc_commands(step(Verb.DELETE, Device("ifb-eth0", "eth0")), None) == ["ip link delete dev ifb-eth0"]
    assert tc_commands(step(Verb.CHANGE, Gso(9000)), None) == ["ip link set dev eth0 gso_max_size 9000"]


def test_what_no_kernel_does_at_once_takes_two_commands() -> None:
    old, new = Qdisc(0x160000, 0x51A0016, Bfifo(9000)), Qdisc(0x160000, 0x51A0016, fq_codel())
    two = tc_commands(step(Verb.REPLACE, new, old), None)
    assert [each.split()[2] for each in two] == ["del", "add"]
    elsewhere = Qdisc(0x170000, 0x51A0016, fq_codel())
    assert len(tc_commands(step(Verb.REPLACE, elsewhere, old), None)) == 1


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (
            step(Verb.CHANGE, TcClass(0x51A0016, 0x51A0001, FASTER), TcClass(0x51A0016, 0x51A0001, REALTIME)),
            "~ eth0 class 51a:16 realtime: rate 6mbit -> 7mbit",
        ),
        (
            step(Verb.ADD, TcClass(0x51A0016, 0x51A0001, REALTIME)),
            "+ eth0 class 51a:16 realtime: rate 6mbit ceil 20mbit",
        ),
        (step(Verb.ADD, Qdisc(0x51A0000, ROOT, Htb(0x24))), "+ eth0 root 51a: htb, default class 24"),
        (
            step(Verb.REPLACE, Qdisc(0x51B0000, ROOT, Htb(0x24)), Qdisc(0x51A0000, ROOT, Htb(0x16))),
            "! eth0 root 51b: instead of 51a:, default 16 -> 24",
        ),
        (
            step(Verb.DRAIN, TcClass(0x51A0016, 0x51A0001, REALTIME)),
            "- eth0 class 51a:16 realtime: wait until it is empty",
        ),
        (step(Verb.DELETE, TcClass(0x51A0016, 0x51A0001, REALTIME)), "- eth0 class 51a:16 realtime"),
        (step(Verb.ADD, CLSACT_QDISC), "+ eth0 clsact"),
        (step(Verb.ADD, Device("ifb-eth0", "eth0")), "+ eth0 IFB for what comes in by eth0"),
        (step(Verb.CHANGE, Gso(9000), Gso(65536)), "~ eth0 longest train: 65536 -> 9000 bytes"),
        (
            step(
                Verb.REPLACE,
                Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-2")),
                Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-1")),
            ),
            "~ eth0 filter at egress pref 20896: name inferlane-1 -> inferlane-2",
        ),
    ],
)
def test_one_line_says_what_becomes_of_it(one: Step, line: str) -> None:
    assert describe(one, LABELS) == line


@given(observed_states(), desired_states())
def test_every_step_of_any_plan_can_be_said(observed: NetworkState, desired: NetworkState) -> None:
    for each in plan(observed, desired):
        line = describe(each, {})
        assert line[0] == symbol(each)
        assert line[0] in "+~-!"
        assert "\n" not in line
        commands = tc_commands(each, None)
        assert commands
        assert all(command.startswith(("tc ", "ip ", "nft ", "# ")) for command in commands)


def table_step(verb: Verb, before: Table | None = None) -> Step:
    return Step(verb=verb, device="", subject=Table("classify_2"), before=before)


def test_a_table_is_told_with_its_chains_name() -> None:
    old = Table("classify_1")
    assert describe(table_step(Verb.ADD), {}) == "+ nftables table inet inferlane: classify_2"
    assert describe(table_step(Verb.REPLACE, old), {}) == "~ nftables table inet inferlane: classify_1 -> classify_2"
    assert describe(table_step(Verb.DELETE), {}) == "- nftables table inet inferlane"


def test_a_tables_command_is_the_whole_transaction() -> None:
    programs = {"classify_2": b"table inet inferlane {\n}\n"}
    (command,) = tc_commands(table_step(Verb.ADD), "blue", programs)
    assert command.splitlines() == [
        "ip netns exec blue nft -f - <<'EOF'",
        "add table inet inferlane",
        "delete table inet inferlane",
        "table inet inferlane {",
        "}",
        "EOF",
    ]
    assert tc_commands(table_step(Verb.REPLACE), None, programs) == [command.removeprefix("ip netns exec blue ")]
    assert tc_commands(table_step(Verb.DELETE), None) == ["nft delete table inet inferlane"]
    assert tc_commands(table_step(Verb.ADD), None)[0].startswith("# nft -f -")
