# SPDX-License-Identifier: Apache-2.0
"""Every engine and every classifier on a kernel that has them all: made, read back, counted, and gone again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec
import pytest

from qos.tc.capabilities import Capabilities
from qos.tc.design.compile import CannotKeepError, Compiled
from qos.tc.kernel.probe import probe
from qos.tc.state import Cake, Ets, FqCodel, Htb, Tbf
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import alone
from tests.fakes.programs import until
from tests.fakes.shaped_link import COUNT, ShapedLink, datagrams, shaped_link

FLOW = {"class": "batch", "proto": "udp", "dport": (5000, "6000-6010")}
CASES = ((46, 9, "realtime"), (18, 9, "interactive"), (1, 9, "background"), (46, 6003, "batch"), (63, 9, "interactive"))
"""DSCP, port, and the class that such a packet is of."""


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    with alone("engines") as host:
        return probe(host.name)


@pytest.fixture
def link() -> Iterator[ShapedLink]:
    with shaped_link("engines") as made:
        yield made


def without(known: Capabilities, *kinds: str) -> Capabilities:
    """The same kernel, as if it had refused these."""
    tables = {
        table: {kind: "TC classifier not found" if kind in kinds else said for kind, said in told.items()}
        for table, told in (("qdiscs", known.qdiscs), ("classifiers", known.classifiers))
    }
    return msgspec.structs.replace(known, **tables)


def check_classes(link: ShapedLink, *, device: str = "eth0", expected: dict[str, str] | None = None) -> None:
    """That packets of each case are counted in their class, or in the queue that `expected` says it shares."""
    sender, to = (link.host, link.other) if device == "eth0" else (link.other, link.host)
    before = link.packets(device)
    wanted = dict.fromkeys(before, 0)
    for version in (4, 6):
        for dscp, port, name in CASES:
            datagrams(sender, to, dscp, port=port, version=version)
            wanted[(expected or {}).get(name, name)] += 1

    def trains() -> dict[str, int]:
        # The kernel's own, for neighbours and multicast groups, are fewer than a train.
        return {name: (packets - before[name]) // COUNT for name, packets in link.packets(device).items()}

    with suppress(AssertionError):
        until(lambda: trains() == wanted or None, "the last packets")
    assert trains() == wanted


def degraded(compiled: Compiled) -> list[str]:
    """What of the config is not kept, as people are told."""
    return [each.text for each in compiled.notes if each.severity == "degraded"]


def seen(link: ShapedLink) -> tuple[str, str, str, str]:
    """What is on the host, as tc and ip print it."""
    return (
        link.host.tc("qdisc show"),
        link.host.tc("class show dev eth0"),
        link.host.tc("filter show dev eth0"),
        link.host.ip("-d -br link show"),
    )


def test_auto_is_htb_with_fq_codel_behind_what_cuts_trains(link, capabilities):
    before = seen(link)
    compiled = link.shape(policy_of({"ingress": "50mbit"}, flows=(FLOW,)), capabilities)
    assert not degraded(compiled) and not any("fq_codel" in each.text for each in compiled.notes)
    for device in ("eth0", "ifb-eth0"):
        shaped = compiled.desired.link(device)
        assert shaped is not None and isinstance(link.root(device).options, Htb)
        leaves = {type(each.options): each for each in shaped.qdiscs}
        assert leaves.keys() >= {Htb, Tbf, FqCodel}
        assert leaves[FqCodel].parent >> 16 == leaves[Tbf].handle >> 16
    assert "matchall" in link.host.tc("filter show dev eth0 ingress")
    check_classes(link)
    check_classes(link, device="ifb-eth0")
    by_handle = link.kernel.counters("eth0")
    queued = {
        compiled.labels["eth0", each.handle]: by_handle[each.handle].packets
        for each in compiled.desired.links[-1].qdiscs
        if isinstance(each.options, FqCodel)
    }
    assert queued.keys() == {"realtime", "interactive", "batch", "background"} and min(queued.values()) >= COUNT
    link.unshape()
    assert seen(link) == before


@pytest.mark.parametrize(("missing", "used"), [(("bpf",), "flower"), (("bpf", "flower"), "u32")])
def test_filters_on_our_root_where_no_program_can_be_loaded(link, capabilities, missing, used):
    compiled = link.shape(policy_of({"ingress": "50mbit"}, flows=(FLOW,)), without(capabilities, *missing))
    (said,) = degraded(compiled)
    assert f"; using {used}: packets with a VLAN tag are not seen" in said
    assert (compiled.programs, f" {used} " in link.host.tc("filter show dev eth0 parent 51a:")) == ({}, True)
    assert "clsact" in link.host.tc("qdisc show dev eth0")  # for what comes in, alone
    check_classes(link)
    check_classes(link, device="ifb-eth0")
    link.unshape()
    assert "51a:" not in link.host.tc("qdisc show") and "clsact" not in link.host.tc("qdisc show")


def test_cake_has_a_tin_for_each_rank_above_and_below_the_default(link, capabilities):
    policy = policy_of({"engine": "cake", "ingress": "50mbit", "overhead": "ethernet"}, flows=(FLOW,))
    before = seen(link)
    compiled = link.shape(policy, capabilities)
    root = link.root().options
    assert isinstance(root, Cake) and (root.bandwidth, root.diffserv) == (2_500_000, 1)
    (said,) = degraded(compiled)
    assert "batch and background share one" in said
    shared = dict.fromkeys(("batch", "background"), "batch, background")
    check_classes(link, expected=shared)
    check_classes(link, device="ifb-eth0", expected=shared)
    link.unshape()
    assert seen(link) == before


@pytest.mark.parametrize("missing", [(), ("bpf",)])
def test_ets_serves_realtime_first_and_shares_the_rest(link, capabilities, missing):
    compiled = link.shape(
        policy_of({"engine": "ets", "ingress": "50mbit"}, flows=(FLOW,)), without(capabilities, *missing)
    )
    root = link.root().options
    assert isinstance(root, Ets) and (root.bands, root.strict) == (4, 1)
    told = " ".join(each.text for each in compiled.notes)
    assert "ets: it has no rate" in told and "ingress is not shaped: ets keeps no rate" in told
    assert "ifb-eth0" not in link.kernel.facts()
    check_classes(link)


def test_fq_without_bands_is_htb_and_says_what_would_help(link, capabilities):
    assert (capabilities.lacks("fq"), capabilities.fq_bands) == (None, False)  # Linux 6.1
    compiled = link.shape(policy_of({"engine": "fq"}, flows=(FLOW,)), capabilities)
    (text,) = degraded(compiled)
    assert "fq: no bands by packet priority in this kernel (6.1" in text and "Linux 6.7 has them; using htb" in text
    assert isinstance(link.root().options, Htb)
    link.unshape()
    with pytest.raises(CannotKeepError, match=r"Linux 6\.7 has them.*degrade: allow accepts that"):
        link.shape(policy_of({"engine": "fq", "degrade": "refuse"}), capabilities)


def test_marks_leave_the_kernel_as_it_is(link, capabilities):
    before = seen(link)
    compiled = link.shape(policy_of({"engine": "marks"}), capabilities)
    assert (compiled.notes, seen(link)) == ((), before)


def test_one_engine_after_another_takes_the_root_and_gives_it_back(link, capabilities):
    before = seen(link)
    for engine in ("cake", "htb", "ets", "cake", "ets", "htb"):
        link.shape(policy_of({"engine": engine}, flows=(FLOW,)), capabilities)
        assert type(link.root().options) is {"cake": Cake, "htb": Htb, "ets": Ets}[engine]
    link.unshape()
    assert seen(link) == before
