# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from qos.tc.change.ledger import Baseline, DeviceBaseline
from qos.tc.change.scope import namespaces, target, way_back, with_baseline, with_devices_of, without_others
from qos.tc.reconcile.steps import Table
from qos.tc.state import CLSACT, EGRESS_HOOK, ROOT, Clsact, Filter, LinkState, NetworkState, Qdisc, Unread, UnreadFilter
from tests.fakes.fake_kernel import FakeDevice, FakeKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import OLD_KERNEL

EMPTY = Baseline(boot_id="boot", devices=())
CLSACT_QDISC = Qdisc(0xFFFF0000, CLSACT, Clsact())


def had(device: str = "eth0", netns: str | None = None, **fields) -> DeviceBaseline:
    given = {"index": 2, "clsact": False, "gso_max_size": None, "root": None}
    return DeviceBaseline(netns=netns, device=device, **{**given, **fields})


def baseline(*devices: DeviceBaseline) -> Baseline:
    return Baseline(boot_id="boot", devices=devices)


def of(policy, kernel, known=EMPTY):
    return target(policy, None, kernel, known, lambda _: OLD_KERNEL)


@pytest.fixture
def kernel():
    return FakeKernel(FakeDevice("eth0"), FakeDevice("eth1"))


def test_the_policys_namespaces_and_those_that_were_shaped():
    policy = policy_of({"netns": "a"}, {"name": "eth1"}, {"name": "eth2", "netns": "a"})
    assert namespaces(policy, baseline(had(netns="b"), had(netns="a"))) == ("a", None, "b")
    assert namespaces(None, baseline(had(netns="b"))) == ("b",)


def test_a_first_time_remembers_what_is_about_to_change(kernel):
    assert with_baseline(EMPTY, [of(policy_of(), kernel)]).devices == (had(gso_max_size=65536),)
    # A train of this size is short enough at this rate: it stays, and is not ours to give back.
    assert with_baseline(EMPTY, [of(policy_of({"egress": "10gbit"}), kernel)]).devices == (had(),)
    assert with_baseline(EMPTY, [of(policy_of({"engine": "marks"}), kernel)]).devices == (had(),)


def test_a_later_time_does_not_forget_the_first(kernel):
    known = baseline(had(gso_max_size=40_000, clsact=True))
    assert with_baseline(known, [of(policy_of(), kernel, known)]) == known


def test_a_device_that_was_made_anew_begins_anew(kernel):
    known = baseline(had(index=7, gso_max_size=40_000, clsact=True))
    assert with_baseline(known, [of(policy_of(), kernel, known)]).devices == (had(gso_max_size=65536),)


def test_a_root_that_is_adopted_is_remembered(kernel):
    strange = Qdisc(0x10000, ROOT, Unread("sfq", b"\1"))
    kernel.devices["eth0"].qdiscs = {strange.handle: strange}
    below = Qdisc(0x20000, 0x10001, Unread("pfifo", b"\2"))
    kernel.devices["eth0"].qdiscs[below.handle] = below
    (found,) = with_baseline(EMPTY, [of(policy_of({"adopt": True}), kernel)]).devices
    assert (found.root, found.qdiscs) == (strange, (below,))
    # Nothing is made with marks alone, and so nothing is to be given back.
    (found,) = with_baseline(EMPTY, [of(policy_of({"engine": "marks"}), kernel)]).devices
    assert found.root is None


@pytest.mark.parametrize("filters", [(), (0x1,)])
def test_a_clsact_before_us_is_somebody_elses(kernel, filters):
    kernel.devices["eth0"].clsact = CLSACT_QDISC
    kernel.devices["eth0"].filters = [Filter(EGRESS_HOOK, each, 3, 1, UnreadFilter("bpf", b"")) for each in filters]
    (found,) = with_baseline(EMPTY, [of(policy_of(), kernel)]).devices
    assert found.clsact is True


def test_a_clsact_beside_our_root_is_ours_where_the_books_are_lost(kernel):
    kernel.devices["eth0"].clsact = CLSACT_QDISC
    kernel.devices["eth0"].qdiscs = {0x51A0000: Qdisc(0x51A0000, ROOT, Unread("htb", b""))}
    (found,) = with_baseline(EMPTY, [of(policy_of(), kernel)]).devices
    assert found.clsact is False


def test_what_is_no_longer_named_is_given_back(kernel):
    strange = Qdisc(0x10000, ROOT, Unread("sfq", b"\1"))
    kernel.devices["eth1"].gso_max_size = 1514
    known = baseline(had(), had("eth1", gso_max_size=40_000, root=strange), had("gone"))
    found = of(policy_of(), kernel, known)
    assert {each.device for each in found.steps} == {"eth0", "eth1"}
    assert found.desired.link("eth1") == LinkState(name="eth1", qdiscs=(strange,), gso_max_size=40_000)
    assert found.desired.link("gone") is None
    assert of(policy_of(), kernel, baseline(had())).observed.link("eth1") is None


def test_a_device_that_was_renamed_is_given_back_what_it_had(kernel):
    strange = Qdisc(0x10000, ROOT, Unread("sfq", b"\1"))
    known = baseline(had("wan0", index=2, gso_max_size=40_000, root=strange))
    assert of(None, kernel, known).desired.links == (LinkState(name="eth0", qdiscs=(strange,), gso_max_size=40_000),)
    found = of(policy_of({"name": "eth1"}), kernel, known)
    assert found.desired.link("eth0") == LinkState(name="eth0", qdiscs=(strange,), gso_max_size=40_000)
    assert with_baseline(known, [of(policy_of(), kernel, known)]).devices == (
        had("eth0", gso_max_size=40_000, root=strange),
    )


def test_everything_is_given_back_where_there_is_no_policy(kernel):
    kernel.devices["eth0"].clsact = CLSACT_QDISC
    kernel.devices["eth0"].gso_max_size = 1514
    known = baseline(had(gso_max_size=65536, clsact=True), had("gone"))
    found = of(None, kernel, known)
    assert found.capabilities is None
    assert found.desired.links == (LinkState(name="eth0", qdiscs=(CLSACT_QDISC,), gso_max_size=65536),)
    assert len(found.steps) == 1


def test_devices_of_a_policy_are_ours_where_the_books_are_lost():
    known = baseline(had(clsact=True))
    assert with_devices_of(known, policy_of({}, {"name": "eth1", "netns": "a"})).devices == (
        had(clsact=True),
        had("eth1", "a", index=0),
    )
    assert without_others(baseline(had(), had("eth1"), had(netns="a")), policy_of()).devices == (had(),)


def test_the_way_back_from_a_second_try_leads_to_before_the_first():
    first = NetworkState(links=(LinkState(name="eth0"),))
    now = NetworkState(
        links=(
            LinkState(name="eth0", gso_max_size=1514),
            LinkState(name="ifb-eth0", ifb_for="eth0"),
            LinkState(name="eth1"),
            LinkState(name="ifb-eth1", ifb_for="eth1"),
        )
    )
    assert way_back(None, now) == now
    assert way_back(first, now).links == (LinkState(name="eth0"), *now.links[2:])


def test_a_table_goes_with_the_policy_and_stays_what_an_interrupted_change_had_found(kernel):
    kernel.table = "classify_1"
    assert [each.subject for each in of(None, kernel, baseline(had())).steps] == [Table("classify_1")]
    found = NetworkState(links=(LinkState(name="eth1"),), table="classify_2")
    before = NetworkState(links=(LinkState(name="eth0"),), table="classify_1")
    assert way_back(before, found) == NetworkState(links=(*before.links, *found.links), table="classify_1")
    assert way_back(None, found).table == "classify_2"


def test_a_table_is_kept_while_a_device_is_given_back(kernel):
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    found = of(policy_of(flows=(early,)), kernel, baseline(had("eth1")))
    assert found.desired.link("eth1") is not None
    assert found.desired.table in found.programs


def test_a_root_that_somebody_made_since_is_not_replaced_by_the_one_of_before(kernel):
    before = Qdisc(0x10000, ROOT, Unread("sfq", b"\1"))
    newer = Qdisc(0x20000, ROOT, Unread("fq", b"\2"))
    known = baseline(had(root=before))
    kernel.devices["eth0"].qdiscs = {newer.handle: newer}
    assert of(None, kernel, known).steps == ()
    assert [each.device for each in of(policy_of({"name": "eth1"}), kernel, known).steps if each.device == "eth0"] == []
