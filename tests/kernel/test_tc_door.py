# SPDX-License-Identifier: Apache-2.0
"""The door to traffic control on a kernel that has every kind: what we send is what it tells."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from qos.tc.kernel.qdisc_codec import canonical
from qos.tc.state import (
    CLSACT,
    INGRESS_HOOK,
    ROOT,
    U32,
    Bfifo,
    Cake,
    Clsact,
    Ets,
    Filter,
    FilterOptions,
    Flower,
    Fq,
    FqCodel,
    Htb,
    HtbClass,
    LinkState,
    Qdisc,
    QdiscOptions,
    Redirect,
    TcClass,
    Unread,
)
from tests.fakes.namespaces import Host, alone

IPV4, IPV6, ALL = 0x0800, 0x86DD, 0x0003
HOOKS = Qdisc(0xFFFF0000, CLSACT, Clsact())
ROOT_HTB = Qdisc(0x51A0000, ROOT, Htb(0x30))
CLASS = TcClass(
    0x51A0030, 0x51A0000, HtbClass(rate=125_000, ceil=250_000, burst=31250, cburst=31251, prio=3, quantum=1514)
)
CODEL = FqCodel(limit=1000, target=5000, interval=100_000, quantum=1514, memory_limit=4_000_000)


@pytest.fixture
def host() -> Iterator[Host]:
    with alone("door") as made:
        yield made


@pytest.fixture
def kernel(host) -> Iterator[Kernel]:
    with Kernel(host.name) as opened:
        yield opened


def seen(kernel: Kernel) -> LinkState:
    link = kernel.observe({"eth0"}).link("eth0")
    assert link is not None
    return link


QDISCS: list[tuple[QdiscOptions, QdiscOptions]] = [
    (
        Cake(bandwidth=1_250_000, diffserv=1, overhead=38),
        Cake(bandwidth=10**11, diffserv=0, overhead=0),
    ),
    (
        Ets(bands=4, strict=2, quanta=(3000, 1500), priomap=(3, 3, 2, 1, 0, *[3] * 11)),
        Ets(bands=3, strict=0, quanta=(256, 257, 258), priomap=(2,) * 16),
    ),
    (Ets(bands=2, strict=2, quanta=(), priomap=(1,) * 16), Ets(bands=2, strict=1, quanta=(900,), priomap=(0,) * 16)),
    (CODEL, canonical(FqCodel(limit=7, target=42, interval=99_999, quantum=3, memory_limit=2**31, ecn=False))),
]


@pytest.mark.parametrize(("first", "then"), QDISCS)
def test_a_root_is_read_back_as_it_was_made_and_as_it_was_changed(kernel, first, then):
    for verb, options in ((kernel.add, first), (kernel.change, then), (kernel.replace, first)):
        verb("eth0", Qdisc(0x51A0000, ROOT, options))
        assert seen(kernel).qdiscs == (Qdisc(0x51A0000, ROOT, options),)


@pytest.mark.parametrize("target", [42, 4999, 5000, 5001, 999_999])
def test_the_canonical_times_are_what_fq_codel_tells(kernel, target):
    asked = msgspec.structs.replace(CODEL, target=target, interval=target * 20)
    kernel.add("eth0", Qdisc(0x51A0000, ROOT, asked))
    assert seen(kernel).qdiscs[0].options == canonical(asked)


def test_fq_is_read_back_with_its_bands_where_it_has_some(host, kernel):
    bands = (2, 1, 0, *[1] * 13) if probe(host.name).fq_bands else ()
    for verb, limit in ((kernel.add, 3000), (kernel.change, 4000)):
        options = Fq(limit=limit, flow_limit=50, priomap=bands)
        verb("eth0", Qdisc(0x51A0000, ROOT, options))
        assert seen(kernel).qdiscs == (Qdisc(0x51A0000, ROOT, options),)


def test_a_leaf_of_another_kind_takes_the_place_of_one(kernel):
    for each in (ROOT_HTB, CLASS, Qdisc(0x300000, CLASS.handle, Bfifo(3000))):
        kernel.add("eth0", each)
    leaf = Qdisc(0x310000, CLASS.handle, CODEL)
    kernel.replace("eth0", leaf)
    assert seen(kernel).qdiscs == (leaf, ROOT_HTB)
    assert seen(kernel).classes == (CLASS,)


FLOWERS: list[tuple[int, FilterOptions]] = [
    (IPV4, Flower(classid=CLASS.handle, dscp=46)),
    (IPV6, Flower(classid=CLASS.handle, dscp=0)),
    (IPV4, Flower(classid=CLASS.handle, ip_proto=17, src="10.0.0.0/8", dst="192.0.2.1/32", dport=(443, 443))),
    (IPV4, Flower(classid=CLASS.handle, ip_proto=6, sport=(5010, 5020), dport=(1, 65535))),
    (IPV6, Flower(classid=CLASS.handle, ip_proto=17, src="2001:db8::/33", dst="fd00::1/128", sport=(9, 9))),
    (IPV4, Flower(classid=CLASS.handle, dscp=1, ip_proto=6, dport=(22, 22))),
    (IPV4, U32(((0, 46 << 18, 0x00FC0000),), CLASS.handle)),
]


@pytest.mark.parametrize(("protocol", "options"), FLOWERS)
def test_a_filter_is_read_back_as_it_was_made(kernel, protocol, options):
    kernel.add("eth0", ROOT_HTB)
    kernel.add("eth0", CLASS)
    kernel.add("eth0", Filter(ROOT_HTB.handle, 10, protocol, 0, options))
    (found,) = seen(kernel).filters
    assert msgspec.structs.replace(found, handle=0) == Filter(ROOT_HTB.handle, 10, protocol, 0, options)
    kernel.delete("eth0", found)
    assert seen(kernel).filters == ()


def test_a_redirect_is_a_matchall(host, kernel):
    kernel.add_ifb("ifb-eth0", "eth0")
    kernel.add("eth0", HOOKS)
    redirect = Filter(INGRESS_HOOK, 0x51A0, ALL, 1, Redirect("ifb-eth0"))
    for verb in (kernel.add, kernel.replace, kernel.change):
        verb("eth0", redirect)
        assert seen(kernel).filters == (redirect,)
    assert "matchall" in host.tc("filter show dev eth0 ingress")
    kernel.delete("eth0", redirect)
    assert seen(kernel).filters == ()


FOREIGN = {
    "cake": "cake bandwidth 7mbit diffserv8 wash nat",
    "fq_codel": "fq_codel limit 77 flows 64 target 3ms",
    "prio": "prio bands 4",
    "ets": "ets bands 4 strict 1 quanta 5 6 7",
    "fq": "fq limit 99",
    "netem": "netem delay 3ms loss 1%",
    "sfq": "sfq perturb 10",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_strangers_root_can_be_put_back_as_it_was(host, kernel, kind):
    host.tc(f"qdisc add dev eth0 root handle 7: {FOREIGN[kind]}")
    before = host.tc("qdisc show dev eth0")
    (root,) = (each for each in seen(kernel).qdiscs if each.parent == ROOT)
    assert isinstance(root.options, Unread)
    kernel.replace("eth0", ROOT_HTB)
    kernel.delete("eth0", ROOT_HTB)
    kernel.add("eth0", root)
    assert host.tc("qdisc show dev eth0") == before


def test_what_somebody_sets_on_our_qdisc_is_a_difference(host, kernel):
    ours = Qdisc(0x51A0000, ROOT, Cake(bandwidth=1_250_000, diffserv=1, overhead=0))
    kernel.add("eth0", ours)
    host.tc("qdisc change dev eth0 root cake wash")
    assert isinstance(seen(kernel).qdiscs[0].options, Unread)
    kernel.change("eth0", ours)
    assert seen(kernel).qdiscs == (ours,)


def test_this_kernel_has_all_that_can_be_asked_for(host):
    found = probe(host.name)
    lacking = [found.lacks(each) for each in (*found.qdiscs, *found.classifiers, *found.actions, "ifb", "clsact")]
    assert [each for each in lacking if each is not None] == []
