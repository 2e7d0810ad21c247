# SPDX-License-Identifier: Apache-2.0
"""The door to traffic control on this machine's kernel, in namespaces of the test's own.

What this kernel may lack is tested in tests/kernel/test_tc_door.py, on one that has it.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel import bpf
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from qos.tc.state import (
    EGRESS_HOOK,
    INGRESS_HOOK,
    ROOT,
    U32,
    Bfifo,
    Bpf,
    Filter,
    HtbClass,
    Qdisc,
    Redirect,
    TcClass,
    Unread,
)
from tests.fakes.namespaces import Host, alone, joined
from tests.fakes.tc_tree import CLASS, FAST, HOOKS, INNER, LEAF, ROOT_HTB, make_tree, seen

pytestmark = pytest.mark.needs_root

IPV4, IPV6, ALL = 0x0800, 0x86DD, 0x0003
EF_V4 = Filter(0x51A0000, 10, IPV4, 0, U32(((0, 46 << 18, 0x00FC0000), (16, 0x0A000000, 0xFF000000)), 0x51A0016))
EF_V6 = Filter(0x51A0000, 11, IPV6, 0, U32(((0, 46 << 22, 0x0FC00000),), 0x51A0016))
TO_IFB = Filter(INGRESS_HOOK, 0x51A0, ALL, 1, Redirect("ifb-eth0"))
PASSES = struct.pack("<BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)
TO_BATCH = struct.pack(  # skb->priority = 51a:16; return TC_ACT_UNSPEC
    "<BBhiBBhiBBhiBBhi", 0xB7, 2, 0, 0x51A0016, 0x63, 0x21, 32, 0, 0xB7, 0, 0, -1, 0x95, 0, 0, 0
)


@pytest.fixture
def host() -> Iterator[Host]:
    with alone("door") as made:
        yield made


@pytest.fixture
def kernel(host) -> Iterator[Kernel]:
    with Kernel(host.name) as opened:
        yield opened


def test_a_tree_is_read_back_as_it_was_made(kernel):
    make_tree(kernel)
    link = seen(kernel)
    assert link.qdiscs == (LEAF, ROOT_HTB)
    assert link.classes == (INNER, FAST, CLASS)
    assert kernel.observe(()).links == ()


def test_tc_sees_what_was_meant(host, kernel):
    make_tree(kernel)
    shown = host.tc("class show dev eth0")
    assert re.search(r"class htb 51a:30 parent 51a:1 leaf 30: prio 3 .*rate 10Mbit .*ceil 20Mbit", shown)
    assert "51a:16 parent 51a:1 prio 7" in shown
    assert "ceil 400Gbit" in shown
    assert "qdisc htb 51a: root" in host.tc("qdisc show dev eth0")
    assert "default 0x30" in host.tc("qdisc show dev eth0")


def test_classes_and_leaves_change_in_place(kernel):
    make_tree(kernel)
    slower = msgspec.structs.replace(CLASS, options=msgspec.structs.replace(CLASS.options, rate=7, prio=1))
    shorter = Qdisc(LEAF.handle, LEAF.parent, Bfifo(1600))
    kernel.change("eth0", slower)
    kernel.change("eth0", shorter)
    link = seen(kernel)
    assert slower in link.classes
    assert shorter in link.qdiscs


def test_what_is_removed_takes_along_what_hangs_below(kernel):
    make_tree(kernel)
    kernel.delete("eth0", CLASS)
    assert (seen(kernel).qdiscs, seen(kernel).classes) == ((ROOT_HTB,), (INNER, FAST))
    kernel.delete("eth0", ROOT_HTB)
    assert (seen(kernel).qdiscs, seen(kernel).classes) == ((), ())


def test_u32_filters_are_read_back_with_the_handle_that_the_kernel_chose(kernel):
    make_tree(kernel)
    for each in (EF_V4, EF_V6):
        kernel.add("eth0", each)
    found = seen(kernel).filters
    assert [msgspec.structs.replace(each, handle=0) for each in found] == [EF_V4, EF_V6]
    assert all(each.handle for each in found)
    kernel.delete("eth0", found[0])
    assert seen(kernel).filters == found[1:]


def test_what_comes_in_goes_to_an_ifb(host, kernel):
    kernel.add_ifb("ifb-eth0", "eth0")
    kernel.add("eth0", HOOKS)
    kernel.add("eth0", TO_IFB)
    assert seen(kernel).filters == (TO_IFB,)
    assert kernel.observe({"peer0"}).link("ifb-eth0") is None
    ifb = kernel.observe({"eth0"}).link("ifb-eth0")
    assert ifb is not None
    assert (ifb.ifb_for, ifb.qdiscs) == ("eth0", ())
    facts = kernel.facts()["ifb-eth0"]
    assert (facts.kind, facts.up, facts.alias) == ("ifb", True, "inferlane ingress of eth0")
    kernel.replace("eth0", TO_IFB)
    assert seen(kernel).filters == (TO_IFB,)
    kernel.delete("eth0", TO_IFB)
    assert seen(kernel).filters == ()
    kernel.delete_link("ifb-eth0")
    assert "ifb-eth0" not in kernel.facts()
    assert "ifb-eth0" not in host.ip("link show")


def test_a_redirect_to_an_ifb_that_is_gone_leads_nowhere(kernel):
    kernel.add_ifb("ifb-eth0", "eth0")
    kernel.add("eth0", HOOKS)
    kernel.add("eth0", TO_IFB)
    kernel.delete_link("ifb-eth0")
    assert seen(kernel).filters == (msgspec.structs.replace(TO_IFB, options=Redirect("")),)


def test_packets_that_come_in_pass_the_ifb():
    with joined("door") as (left, right), Kernel(right.name) as kernel:
        kernel.add_ifb("ifb-eth0", "eth0")
        kernel.add("ifb-eth0", ROOT_HTB)
        for each in (INNER, CLASS, LEAF):
            kernel.add("ifb-eth0", each)
        kernel.add("eth0", HOOKS)
        kernel.add("eth0", TO_IFB)
        with right.socket() as receiver, left.socket() as sender:
            receiver.bind((right.v4, 9000))
            receiver.settimeout(20)
            sender.sendto(b"through the queue", (right.v4, 9000))
            assert receiver.recv(100) == b"through the queue"
        counted = kernel.counters("ifb-eth0")
        assert counted[CLASS.handle].packets >= 1
        assert counted[LEAF.handle].bytes == counted[CLASS.handle].bytes > 17
        assert counted[CLASS.handle].lends + counted[CLASS.handle].borrows >= 1


@pytest.mark.parametrize("instructions", [PASSES, TO_BATCH])
def test_a_classifier_is_replaced_at_its_handle(kernel, instructions):
    make_tree(kernel)
    kernel.add("eth0", HOOKS)
    for name, verb in (("first", kernel.add), ("second", kernel.replace), ("third", kernel.change)):
        program = bpf.load(instructions, name)
        try:
            verb("eth0", Filter(EGRESS_HOOK, 0x51A1, ALL, 1, Bpf(name)), fd=program)
        finally:
            os.close(program)
        assert seen(kernel).filters == (Filter(EGRESS_HOOK, 0x51A1, ALL, 1, Bpf(name)),)
    kernel.delete("eth0", Filter(EGRESS_HOOK, 0x51A1, ALL, 1, Bpf("third")))
    assert seen(kernel).filters == ()


def test_a_classifier_puts_packets_into_classes():
    with joined("door") as (left, right), Kernel(left.name) as kernel:
        make_tree(kernel)
        kernel.add("eth0", HOOKS)
        program = bpf.load(TO_BATCH, "to-batch")
        try:
            kernel.add("eth0", Filter(EGRESS_HOOK, 0x51A1, ALL, 1, Bpf("to-batch")), fd=program)
        finally:
            os.close(program)
        before = kernel.counters("eth0")[CLASS.handle].packets  # the kernel's own, sent before there was a classifier
        with right.socket(socket.AF_INET6) as receiver, left.socket(socket.AF_INET6) as sender:
            receiver.bind((right.v6, 9000))
            receiver.settimeout(20)
            sender.sendto(b"ours", (right.v6, 9000))
            assert receiver.recv(100) == b"ours"
        counted = kernel.counters("eth0")
        assert counted[FAST.handle].packets >= 1
        assert counted[CLASS.handle].packets == before


def test_what_waits_is_told_of_a_class_of_its_queue_and_of_the_kernels_own():
    with joined("door") as (left, right), Kernel(left.name) as kernel:
        make_tree(kernel)
        options = HtbClass(rate=1000, ceil=1000, burst=3000, cburst=3000, prio=3, quantum=1514)
        kernel.change("eth0", TcClass(CLASS.handle, CLASS.parent, options))
        with left.socket() as sender:
            for _ in range(100_000):  # the first ones wait for the neighbour's address
                packets, octets = kernel.backlog("eth0", CLASS.handle)
                if packets >= 5:
                    break
                sender.sendto(bytes(1200), (right.v4, 9000))
        assert packets >= 5
        assert octets >= 3 * 1200  # among them may be small ones of the kernel itself
        assert kernel.backlog("eth0", LEAF.handle)[0] >= 5
        assert kernel.counters("eth0")[LEAF.handle].backlog_packets >= 5
        assert kernel.backlog("eth0", FAST.handle) == (0, 0)
        kernel.delete("eth0", ROOT_HTB)
        assert kernel.backlog("eth0", 0) == (0, 0)


def test_trains_are_shortened(kernel):
    assert seen(kernel).gso_max_size == kernel.facts()["eth0"].gso_max_size == 65536
    kernel.set_gso_max_size("eth0", 3028)
    assert seen(kernel).gso_max_size == 3028
    kernel.set_gso_max_size("eth0", 65536)
    assert seen(kernel).gso_max_size == 65536


def test_facts_are_those_of_the_namespace(host, kernel):
    facts = kernel.facts()
    assert facts.keys() == {"lo", "eth0", "peer0"}
    assert (facts["eth0"].kind, facts["eth0"].up, facts["eth0"].mtu, facts["eth0"].tx_queues) == ("veth", True, 1500, 1)
    assert facts["eth0"].speed is None
    host.ip("link set eth0 mtu 1280 down")
    assert (kernel.facts()["eth0"].mtu, kernel.facts()["eth0"].up) == (1280, False)


def test_an_ifb_that_was_made_and_never_marked_is_taken_over(host, kernel):
    host.ip("link add ifb-eth0 type ifb")
    kernel.add_ifb("ifb-eth0", "eth0")
    assert kernel.facts()["ifb-eth0"].alias == "inferlane ingress of eth0"
    with pytest.raises(KernelError, match=r"ifb-eth0 in .*: make an IFB for eth0: File exists"):
        kernel.add_ifb("ifb-eth0", "eth0")
    host.ip("link add dummy0 type veth peer name dummy1")
    with pytest.raises(KernelError, match="File exists"):
        kernel.add_ifb("dummy0", "eth0")


ERRORS = [
    (Qdisc(0x300000, 0x51A0099, Bfifo(1)), "Specified class not found"),
    (Qdisc(0x51A0000, ROOT, Bfifo(1)), "Exclusivity flag on"),
    (Filter(0x990000, 1, IPV4, 0, U32(((0, 1, 1),), 1)), "Parent Qdisc doesn't exists"),
    (Qdisc(0x300000, 0x51A0030, Unread("no-such", None)), "Specified qdisc kind is unknown"),
    (CLASS, "File exists"),
]


@pytest.mark.parametrize(("subject", "said"), ERRORS)
def test_the_kernels_own_words_are_told(kernel, subject, said):
    for each in (ROOT_HTB, INNER, CLASS):
        kernel.add("eth0", each)
    with pytest.raises(KernelError, match=said) as caught:
        kernel.add("eth0", subject)
    assert caught.value.errno > 0
    assert caught.value.doing.startswith(f"eth0 in {kernel.netns}: add ")


def test_without_the_capability_an_error_says_which_one(host):
    def unprivileged() -> str:
        with Kernel(host.name) as kernel:
            drop_net_admin()
            with pytest.raises(KernelError) as caught:
                kernel.add("eth0", ROOT_HTB)
        return str(caught.value)

    assert "add qdisc htb 51a:: CAP_NET_ADMIN is needed: run as root, or grant it" in host.call(unprivileged)
    with Kernel(host.name) as kernel:
        assert seen(kernel).qdiscs == ()


def test_without_the_capability_nothing_can_be_probed(host):
    def unprivileged() -> str:
        drop_net_admin()
        with pytest.raises(KernelError) as caught:
            probe(None)
        return str(caught.value)

    assert "CAP_NET_ADMIN is needed" in host.call(unprivileged)


def drop_net_admin() -> None:
    """This thread may do all but this (capset(2)); its sockets keep what they had when they were opened."""
    header = struct.pack("=Ii", 0x20080522, 0)
    every = ctypes.create_string_buffer(24)
    assert ctypes.CDLL(None).capget(header, every) == 0
    words = list(struct.unpack("=6I", every.raw))
    for each in range(3):
        words[each] &= ~(1 << 12)
    assert ctypes.CDLL(None).capset(header, struct.pack("=6I", *words)) == 0


def test_what_a_killed_probe_left_goes_with_the_next(host, kernel):
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    host.ip(f"link add ilp{ended.pid:x}-00ff type ifb")
    with kernel.scratch() as (name, _):
        assert {each for each in kernel.facts() if each.startswith("ilp")} == {name}
        kernel.add(name, HOOKS)
        kernel.add(name, msgspec.structs.replace(TO_IFB, options=Redirect(name)))
        assert not kernel.facts()[name].up, "it is no IFB that takes packets"
    assert not [each for each in kernel.facts() if each.startswith("ilp")]


def test_a_kernel_is_probed_without_a_trace(host, kernel):
    before = kernel.facts().keys()
    found = probe(host.name)
    assert kernel.facts().keys() == before
    assert found.kernel == os.uname().release
    assert found.lacks("htb") is None
    assert found.lacks("bfifo") is None
    assert found.lacks("ifb") is None
    assert found.lacks("clsact") is None
    assert found.lacks("u32") is None
    assert found.qdiscs.keys() == {"htb", "cake", "ets", "fq", "fq_codel", "bfifo", "tbf"}
    assert found.classifiers.keys() == {"u32", "flower", "matchall", "bpf"}
    assert found.actions.keys() == {"mirred", "skbedit"}


def test_a_thousand_classes_are_made_and_read_back(kernel):
    kernel.add("eth0", ROOT_HTB)
    kernel.add("eth0", INNER)
    for minor in range(2, 1002):
        kernel.add("eth0", TcClass(0x51A0000 | minor, INNER.handle, CLASS.options))
        kernel.add("eth0", Qdisc(minor << 16, 0x51A0000 | minor, Bfifo(30_000)))
    link = seen(kernel)
    assert len(link.classes) == len(link.qdiscs) == 1001
    assert link.classes[1:] == tuple(TcClass(0x51A0000 | each, INNER.handle, CLASS.options) for each in range(2, 1002))
    assert len(kernel.counters("eth0")) == 2002
