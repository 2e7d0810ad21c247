# SPDX-License-Identifier: Apache-2.0
"""What is ours, what goes with what, and what a snapshot keeps."""

from __future__ import annotations

from msgspec.structs import replace

from qos.tc.reconcile.plan import ours, snapshot
from qos.tc.state import (
    FOREIGN_TABLE,
    INGRESS_HOOK,
    OUR_CHAIN,
    U32,
    Bfifo,
    Bpf,
    Clsact,
    Filter,
    LinkState,
    NetworkState,
    Qdisc,
    Redirect,
    Unread,
)
from qos.tc.tree import ALTERED, Tree, kind_of, our_table, same_options
from tests.fakes.tc_states import CLSACT_QDISC, FOREIGN_FILTERS, FOREIGN_TREE, ROOT_HANDLE, TREE, fq_codel, one


def test_ours_is_our_root_with_all_below_it_and_our_filters() -> None:
    nested = Qdisc(0x310000, 0x240001, Bfifo(1))
    stranger = LinkState(name="eth1", qdiscs=FOREIGN_TREE.qdiscs, classes=FOREIGN_TREE.classes)
    mine = Filter(INGRESS_HOOK, 0x51AF, 3, 1, Bpf("inferlane-1"))
    link = replace(TREE, qdiscs=(*TREE.qdiscs, nested, CLSACT_QDISC), filters=(mine, *FOREIGN_FILTERS))
    found = ours(NetworkState(links=(link, stranger)))
    assert found.links == (replace(link, filters=(mine,)), LinkState(name="eth1"))
    only_theirs = replace(link, filters=FOREIGN_FILTERS)
    assert not any(isinstance(each.options, Clsact) for each in ours(one(only_theirs)).links[0].qdiscs)


def test_what_goes_takes_along_what_hangs_below_it() -> None:
    mine = Filter(0x51A0024, 1, 3, 1, Bpf("inferlane-1"))
    tree = Tree(replace(TREE, filters=(mine,)))
    assert [tree.depth(each) for each in (ROOT_HANDLE, 0x51A0001, 0x51A0016, 0x160000)] == [0, 1, 2, 3]
    tree.drop_class(0x51A0001)
    assert (tree.classes, list(tree.qdiscs), tree.filters) == ({}, [ROOT_HANDLE], [])
    whole = Tree(TREE)
    whole.drop_qdisc(TREE.qdiscs[0])
    assert (whole.classes, whole.qdiscs, whole.root) == ({}, {}, None)


def test_what_is_not_read_is_the_same_where_its_kind_is() -> None:
    assert same_options(Unread("sfq", b"1 packet"), Unread("sfq", b"2 packets"))
    assert not same_options(Unread("sfq", b""), Unread("tbf", b""))
    assert not same_options(Unread("fq_codel", b""), fq_codel())
    assert kind_of(Unread("sfq", b"")) == "sfq"
    assert kind_of(fq_codel()) == "fq_codel"


def test_a_snapshot_is_what_a_change_can_touch_as_it_can_be_put_back() -> None:
    numbered = Filter(ROOT_HANDLE, 1, 0x0800, 0x80000800, U32((), 0x51A0016))
    link = replace(TREE, qdiscs=(*TREE.qdiscs, CLSACT_QDISC), filters=(numbered, *FOREIGN_FILTERS), gso_max_size=65536)
    (kept,) = snapshot(one(link), one(LinkState(name="eth0"))).links
    assert kept.filters == (replace(numbered, handle=0),)
    assert kept.gso_max_size is None, "not ours to put back"
    (sized,) = snapshot(one(link), one(LinkState(name="eth0", gso_max_size=9000))).links
    assert sized.gso_max_size == 65536
    assert snapshot(one(FOREIGN_TREE), one(LinkState(name="eth0"))).links == (LinkState(name="eth0"),)
    assert snapshot(one(FOREIGN_TREE), one(TREE)).links == (FOREIGN_TREE,), "an adopted root goes back"


def test_a_redirection_that_leads_nowhere_is_not_put_back() -> None:
    leads = Filter(INGRESS_HOOK, 0x51A0, 3, 1, Redirect("ifb-eth0"))
    nowhere = replace(leads, handle=2, options=Redirect(""))
    (kept,) = snapshot(one(replace(TREE, filters=(leads, nowhere))), one(TREE)).links
    assert kept.filters == (leads,)


def test_a_table_of_somebody_else_is_nothing_of_ours() -> None:
    assert our_table(FOREIGN_TABLE) == our_table("") == ""
    assert our_table("classify_1" + ALTERED) == "classify_1" + ALTERED
    assert ours(NetworkState(table=FOREIGN_TABLE)) == NetworkState()


def test_a_snapshot_has_a_table_whole_or_not_at_all() -> None:
    def kept(table: str) -> str:
        return snapshot(NetworkState(table=table), NetworkState()).table

    assert kept("classify_1") == kept("classify_1" + ALTERED) == "classify_1"
    assert kept(OUR_CHAIN + ALTERED) == kept(FOREIGN_TABLE) == kept("") == ""
