# SPDX-License-Identifier: Apache-2.0
"""Traffic control that somebody else made: seen, and put back as it was, on this machine's kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel.netlink import Kernel
from qos.tc.state import (
    EGRESS_HOOK,
    Unread,
    UnreadFilter,
)
from tests.fakes.namespaces import Host, alone
from tests.fakes.tc_tree import HOOKS, ROOT_HTB, seen

pytestmark = pytest.mark.needs_root

IPV4 = 0x0800


@pytest.fixture
def host() -> Iterator[Host]:
    with alone("door") as made:
        yield made


@pytest.fixture
def kernel(host) -> Iterator[Kernel]:
    with Kernel(host.name) as opened:
        yield opened


FOREIGN = {
    "tbf": ("root handle 7: tbf rate 1mbit burst 4000 limit 9000", "rate 1Mbit burst"),
    "htb": ("root handle 7: htb default 0x20 r2q 17", "r2q 17 default 0x20"),
    "pfifo": ("root handle 7: pfifo limit 33", "limit 33p"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_strangers_root_can_be_put_back_as_it_was(host, kernel, kind):
    command, shown = FOREIGN[kind]
    host.tc(f"qdisc add dev eth0 {command}")
    before = shown_without_counters(host)
    assert shown in before
    (root,) = seen(kernel).qdiscs
    assert isinstance(root.options, Unread)
    assert (root.handle, root.options.kind) == (0x70000, kind)
    kernel.replace("eth0", ROOT_HTB)
    assert seen(kernel).qdiscs == (ROOT_HTB,)
    kernel.delete("eth0", ROOT_HTB)
    kernel.add("eth0", root)
    assert shown_without_counters(host) == before


def test_a_strangers_classes_and_filters_can_be_put_back_as_they_were(host, kernel):
    host.tc("qdisc add dev eth0 root handle 7: htb default 0x20")
    host.tc("class add dev eth0 parent 7: classid 7:20 htb rate 1mbit ceil 2mbit prio 2 mpu 64 overhead 18")
    host.tc("filter add dev eth0 parent 7: protocol ip pref 3 u32 match ip dsfield 0xb8 0xfc flowid 7:20")
    before = host.tc("class show dev eth0"), host.tc("filter show dev eth0")
    link = seen(kernel)
    (of_class,) = link.classes
    (of_filter,) = link.filters
    assert of_class.parent == 0x70000
    assert isinstance(of_filter.options, UnreadFilter)
    kernel.delete("eth0", link.qdiscs[0])
    for each in (*link.qdiscs, of_class, of_filter):
        kernel.add("eth0", each)
    assert (host.tc("class show dev eth0"), host.tc("filter show dev eth0")) == before
    assert [each for each in seen(kernel).classes if each.handle != of_class.handle] == []


def test_a_strangers_filter_at_our_hooks_is_seen(host, kernel):
    kernel.add("eth0", HOOKS)
    host.tc("filter add dev eth0 egress protocol ip pref 5 u32 match ip dst 10.9.0.0/16")
    (found,) = seen(kernel).filters
    assert (found.parent, found.pref, found.protocol) == (EGRESS_HOOK, 5, IPV4)
    assert isinstance(found.options, UnreadFilter)
    host.tc("qdisc del dev eth0 clsact")
    host.tc("qdisc add dev eth0 ingress")
    assert [each.options for each in seen(kernel).qdiscs] == [Unread("ingress", b"")]
    with pytest.raises(KernelError, match="Exclusivity flag on"):
        kernel.add("eth0", HOOKS)


def shown_without_counters(host: Host) -> str:
    return re.sub(r"direct_packets_stat \d+ ", "", host.tc("qdisc show dev eth0"))
