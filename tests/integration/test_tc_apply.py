# SPDX-License-Identifier: Apache-2.0
"""Plans carried out on this machine's kernel, in namespaces of their own: in place, undone after failures, repaired."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from qos.tc.capabilities import Capabilities
from qos.tc.design.compile import CannotKeepError
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.apply import Outcome, apply
from qos.tc.reconcile.backlogs import backlogs
from qos.tc.reconcile.commands import tc_commands
from qos.tc.reconcile.plan import Verb, ours, plan, snapshot
from qos.tc.reconcile.survey import Survey, netns_of, survey
from qos.tc.state import ROOT, U32, Bfifo, Filter, Htb, HtbClass, LinkState, NetworkState, Qdisc, TcClass
from qos.tc.tree import Tree, root_of
from tests.fakes import namespaces
from tests.fakes.failing_kernel import FailingKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import Host

pytestmark = pytest.mark.needs_root

PORT = 5999
SLOW = 500_000  # bytes per second: 4 Mbit/s


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    with namespaces.alone("tcprobe") as host:
        return probe(host.name)


@pytest.fixture
def host() -> Iterator[Host]:
    with namespaces.alone("tcapply") as made:
        yield made


def htb_class(rate: int, *, ceil: int = 10 * SLOW, prio: int = 0) -> HtbClass:
    return HtbClass(rate=rate, ceil=ceil, burst=50_000, cburst=50_000, prio=prio, quantum=1514)


def tree(host: Host, *minors: int, default: int = 0x24, rate: int = SLOW) -> NetworkState:
    """eth0 with a class and a queue for each minor."""
    root = Qdisc(0x51A0000, ROOT, Htb(default))
    inner = TcClass(0x51A0001, root.handle, htb_class(10 * SLOW))
    classes = [TcClass(0x51A0000 | each, inner.handle, htb_class(rate, ceil=rate)) for each in minors]
    leaves = [Qdisc(each << 16, 0x51A0000 | each, Bfifo(500_000)) for each in minors]
    link = LinkState(name="eth0", qdiscs=(root, *leaves), classes=(inner, *classes))
    return NetworkState(netns=host.name, links=(link,))


def with_filter(state: NetworkState, dscp: int, minor: int) -> NetworkState:
    match = Filter(0x51A0000, 1, 0x0800, 0, U32(((0, dscp << 18, 0xFC0000),), 0x51A0000 | minor))
    (link,) = state.links
    return replace(state, links=(replace(link, filters=(*link.filters, match)),))


def applied(kernel: Kernel, desired: NetworkState, **how: Any) -> Outcome:
    return apply(kernel, desired, **({"programs": {}} | how))


def made(kernel: Kernel, desired: NetworkState, **how: Any) -> Outcome:
    outcome = applied(kernel, desired, **how)
    assert outcome.failure is None
    assert plan(kernel.observe(["eth0"]), desired) == ()
    return outcome


def surveyed(policy: LinkPolicy, host: Host, kernel: Kernel, capabilities: Capabilities) -> Survey:
    return survey(policy, host.name, kernel, capabilities)


def kept(policy: LinkPolicy, host: Host, kernel: Kernel, capabilities: Capabilities) -> Survey:
    """The policy is applied; what was found before."""
    found = surveyed(policy, host, kernel, capabilities)
    outcome = apply(kernel, found.compiled.desired, programs=found.compiled.programs, steps=found.steps)
    assert outcome.failure is None
    return found


def test_a_policy_is_made_and_a_second_plan_is_empty(host: Host, capabilities: Capabilities) -> None:
    policy = policy_of({"netns": host.name, "ingress": "50mbit"})
    with Kernel(host.name) as kernel:
        found = kept(policy, host, kernel, capabilities)
        assert found.steps
        again = surveyed(policy, host, kernel, capabilities)
        assert again.steps == ()
        assert {each.name for each in ours(again.observed).links} == {"eth0", "ifb-eth0"}
        nothing = NetworkState(netns=host.name, links=(LinkState(name="eth0"),))
        assert applied(kernel, nothing).failure is None
        assert [each.qdiscs for each in kernel.observe(["eth0"]).links] == [()]
        assert "ifb-eth0" not in kernel.facts()


def test_two_namespaces_are_surveyed_each_for_itself(host: Host, capabilities: Capabilities) -> None:
    with namespaces.alone("tcapply") as other:
        policy = policy_of({"netns": host.name}, {"netns": other.name, "egress": "50mbit"})
        assert netns_of(policy) == (host.name, other.name)
        for each in (host, other):
            with Kernel(each.name) as kernel:
                kept(policy, each, kernel, capabilities)
        for each, rate in ((host, 2_500_000), (other, 6_250_000)):
            with Kernel(each.name) as kernel:
                assert surveyed(policy, each, kernel, capabilities).steps == ()
                (inner,) = (one for one in kernel.observe(["eth0"]).links[0].classes if one.handle == one.parent | 1)
                assert isinstance(inner.options, HtbClass)
                assert inner.options.rate == rate


def test_the_commands_that_a_plan_prints_do_the_same(host: Host) -> None:
    desired = with_filter(tree(host, 0x16, 0x24), 46, 0x16)
    with Kernel(host.name) as kernel:
        for step in plan(kernel.observe(["eth0"]), desired):
            for command in tc_commands(step, host.name):
                subprocess.run(shlex.split(command), check=True, timeout=30)
        # tc counts a burst in whole microseconds, the kernel in ticks of 64 ns.
        left = [each for each in plan(kernel.observe(["eth0"]), desired) if each.verb is not Verb.CHANGE]
        assert left == []
        changed = with_filter(tree(host, 0x16, 0x30), 46, 0x30)
        made(kernel, desired)
        for step in plan(kernel.observe(["eth0"]), changed):
            for command in tc_commands(step, host.name):
                if not command.startswith("#"):
                    subprocess.run(shlex.split(command), check=True, timeout=30)
        left = [each for each in plan(kernel.observe(["eth0"]), changed) if each.verb is not Verb.CHANGE]
        assert left == []


def test_changes_in_place_lose_none_of_what_stands_in_the_queue() -> None:
    with namespaces.joined("tcapply") as (left, right), Kernel(left.name) as kernel:
        made(kernel, with_filter(tree(left, 0x24, 0x30), 46, 0x30))
        packets = 300
        with right.socket() as receiver, left.socket() as sender:
            receiver.bind((right.v4, PORT))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
            for number in range(packets):
                sender.sendto(number.to_bytes(4, "big") + bytes(1196), (right.v4, PORT))
            standing = backlogs(kernel, ["eth0"])["eth0", 0x51A0024]
            assert standing > 50
            # A rate, a queue's limit, a new class, a filter: and one class less, on which nothing is sent.
            wanted = with_filter(tree(left, 0x16, 0x24, rate=2 * SLOW), 46, 0x16)
            outcome = made(kernel, wanted)
            assert sum(each.loss.packets or 0 for each in outcome.done) == 0
            receiver.settimeout(20)
            got = {int.from_bytes(receiver.recv(2000)[:4], "big") for _ in range(packets)}
        assert got == set(range(packets))
        assert all(each.drops == 0 for each in kernel.counters("eth0").values())


def test_a_class_with_a_standing_queue_is_drained_before_it_goes() -> None:
    with namespaces.joined("tcapply") as (left, right), Kernel(left.name) as kernel:
        made(kernel, tree(left, 0x24, 0x30, default=0x24))
        packets = 200
        with right.socket() as receiver, left.socket() as sender:
            receiver.bind((right.v4, PORT))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x51A0030)
            for number in range(packets):
                sender.sendto(number.to_bytes(4, "big") + bytes(1196), (right.v4, PORT))
            assert backlogs(kernel, ["eth0"])["eth0", 0x51A0030] > 20
            made(kernel, tree(left, 0x24), drain_s=20.0)
            receiver.settimeout(20)
            got = {int.from_bytes(receiver.recv(2000)[:4], "big") for _ in range(packets)}
        assert got == set(range(packets))


def test_what_tc_changed_behind_our_back_is_repaired(host: Host) -> None:
    desired = with_filter(tree(host, 0x16, 0x24, 0x30), 46, 0x16)
    with Kernel(host.name) as kernel:
        made(kernel, desired)
        host.tc("class change dev eth0 parent 51a:1 classid 51a:16 htb rate 1mbit ceil 2mbit")
        host.tc("class add dev eth0 parent 51a:1 classid 51a:77 htb rate 1mbit")
        host.tc("qdisc replace dev eth0 parent 51a:30 handle 31: pfifo limit 7")
        host.tc("filter del dev eth0 parent 51a: pref 1")
        host.tc("filter add dev eth0 parent 51a: pref 9 protocol ip u32 match u32 0 0 flowid 51a:77")
        host.tc("qdisc del dev eth0 parent 51a:24")
        assert plan(kernel.observe(["eth0"]), desired)
        made(kernel, desired)
        host.tc("qdisc del dev eth0 root")
        made(kernel, desired)


def test_a_failure_at_every_change_is_undone(host: Host) -> None:
    before = with_filter(tree(host, 0x16, 0x24, 0x30), 46, 0x16)
    after = with_filter(tree(host, 0x16, 0x24, 0x42, rate=2 * SLOW), 46, 0x42)
    with FailingKernel(host.name) as kernel:
        for start, goal in ((NetworkState(netns=host.name), before), (before, after), (after, tree(host, 0x24))):
            if start.links:
                made(kernel, start)
            found = kernel.observe(["eth0"])
            back = snapshot(found, goal)
            number, failure = 0, True
            while failure:
                number += 1
                kernel.fails = [kernel.changes + number]
                outcome = applied(kernel, goal)
                failure = outcome.failure is not None
                if failure:
                    assert (outcome.rolled_back, outcome.residual, outcome.unshaped) == (True, (), False)
                    assert plan(kernel.observe(["eth0"]), back, to_snapshot=True) == ()
            assert number > 3


def test_a_failure_at_every_change_of_a_policy_with_an_ifb_is_undone(host: Host, capabilities: Capabilities) -> None:
    policy = policy_of({"netns": host.name, "ingress": "50mbit"})
    with FailingKernel(host.name) as kernel:
        number, failure = 0, True
        while failure:
            number += 1
            found = surveyed(policy, host, kernel, capabilities)
            kernel.fails = [kernel.changes + number]
            outcome = apply(kernel, found.compiled.desired, programs=found.compiled.programs)
            failure = outcome.failure is not None
            if failure:
                assert outcome.rolled_back
                assert [each.qdiscs for each in kernel.observe(["eth0"]).links] == [()]
                assert "ifb-eth0" not in kernel.facts()
        assert number > len(found.steps)


def test_where_the_way_back_fails_the_kernels_own_queue_returns(host: Host) -> None:
    with FailingKernel(host.name) as kernel:
        made(kernel, tree(host, 0x16, 0x24))
        kernel.fails = range(kernel.changes + 2, kernel.changes + 5)
        outcome = applied(kernel, tree(host, 0x16, 0x24, 0x30, 0x42))
        assert outcome.unshaped
        assert not outcome.rolled_back
        assert [each.qdiscs for each in kernel.observe(["eth0"]).links] == [()]


def test_a_foreign_root_is_kept_adopted_and_put_back(host: Host, capabilities: Capabilities) -> None:
    host.tc("qdisc add dev eth0 root handle 1: htb default 20")
    host.tc("class add dev eth0 parent 1: classid 1:1 htb rate 9mbit")
    host.tc("class add dev eth0 parent 1:1 classid 1:20 htb rate 3mbit ceil 9mbit")
    host.tc("qdisc add dev eth0 parent 1:20 handle 20: pfifo limit 77")
    host.tc("filter add dev eth0 parent 1: pref 3 protocol ip u32 match u32 0xb80000 0xfc0000 at 0 flowid 1:20")

    def shown() -> list[str]:
        found = [host.tc(f"{each} show dev eth0") for each in ("qdisc", "class")]
        return [re.sub(r"direct_packets_stat \d+", "", each) for each in found]

    before = shown()
    with FailingKernel(host.name) as kernel:
        with pytest.raises(CannotKeepError, match="adopt"):
            surveyed(policy_of({"netns": host.name}), host, kernel, capabilities)
        assert shown() == before
        found = surveyed(policy_of({"netns": host.name, "adopt": True}), host, kernel, capabilities)
        assert len(found.steps) > 8
        for number in range(2, 9):
            kernel.fails = [kernel.changes + number]
            outcome = apply(kernel, found.compiled.desired, programs=found.compiled.programs)
            assert outcome.failure is not None
            assert outcome.rolled_back
            assert shown() == before
        assert "flowid 1:20" in host.tc("filter show dev eth0 parent 1:")


def test_filters_of_others_at_the_same_hooks_stay(host: Host, capabilities: Capabilities) -> None:
    host.tc("qdisc add dev eth0 clsact")
    for hook in ("ingress", "egress"):
        host.tc(f"filter add dev eth0 {hook} pref 7 protocol ip u32 match u32 0 0 flowid 1:7")

    def theirs() -> list[str]:
        return [host.tc(f"filter show dev eth0 {hook} pref 7") for hook in ("ingress", "egress")]

    before = theirs()
    assert all("flowid 1:7" in each for each in before)
    policy = policy_of({"netns": host.name, "ingress": "50mbit"})
    with FailingKernel(host.name) as kernel:
        found = surveyed(policy, host, kernel, capabilities)
        kernel.fails = [len(found.steps)]
        assert apply(kernel, found.compiled.desired, programs=found.compiled.programs).rolled_back
        assert theirs() == before
        kernel.fails = []
        kept(policy, host, kernel, capabilities)
        assert theirs() == before
        assert surveyed(policy, host, kernel, capabilities).steps == ()
        made(kernel, NetworkState(netns=host.name, links=(LinkState(name="eth0"),)))
        assert theirs() == before


def test_an_interface_that_is_not_there_is_named_with_those_that_are(host: Host, capabilities: Capabilities) -> None:
    with Kernel(host.name) as kernel:
        with pytest.raises(CannotKeepError, match=r"interfaces\[0\] eth1: no such interface; did you mean eth0\?"):
            surveyed(policy_of({"netns": host.name, "name": "eth1"}), host, kernel, capabilities)
        kept(policy_of({"netns": host.name}), host, kernel, capabilities)
        host.ip("link set eth0 down")
        host.ip("link set eth0 name lan0")
        with pytest.raises(CannotKeepError, match="lan0 has queues of ours and is not in the config: was it renamed"):
            surveyed(policy_of({"netns": host.name}), host, kernel, capabilities)


def test_an_interface_that_is_down_is_a_warning(host: Host, capabilities: Capabilities) -> None:
    host.ip("link set eth0 down")
    with Kernel(host.name) as kernel:
        found = kept(policy_of({"netns": host.name}), host, kernel, capabilities)
        assert any("down" in each.text for each in found.compiled.notes)
        assert surveyed(policy_of({"netns": host.name}), host, kernel, capabilities).steps == ()


def test_a_thousand_classes(host: Host) -> None:
    desired = tree(host, *range(2, 1002))
    with Kernel(host.name) as kernel:
        outcome = made(kernel, desired)
        assert len(outcome.done) == 2002
        assert applied(kernel, desired).done == ()
        few = tree(host, 2, 3)
        made(kernel, few)
        link = kernel.observe(["eth0"]).links[0]
        assert len(link.classes) == 3
        assert root_of(link) == Tree(few.links[0]).root
