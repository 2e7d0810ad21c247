# SPDX-License-Identifier: Apache-2.0
"""What each step of one device loses, and in which order they come."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from qos.tc.reconcile.plan import Step, Verb, plan
from qos.tc.state import ROOT, U32, Bfifo, Filter, Htb, LinkState, Qdisc, Tbf, TcClass
from tests.fakes.tc_states import ROOT_HANDLE, TREE, fq_codel, htb_class, one


def verbs(steps: tuple[Step, ...]) -> list[tuple[Verb, str]]:
    return [(each.verb, type(each.subject).__name__) for each in steps]


def classes_with(link: LinkState, *new: TcClass) -> LinkState:
    by_handle = {each.handle: each for each in (*link.classes, *new)}
    return replace(link, classes=tuple(by_handle.values()))


def test_another_rate_is_changed_in_place_and_loses_nothing() -> None:
    want = classes_with(TREE, TcClass(0x51A0016, 0x51A0001, htb_class(1500)))
    (step,) = plan(one(TREE), one(want), {("eth0", 0x51A0016): 176, ("eth0", 0x160000): 176})
    assert (step.verb, step.subject, step.before) == (Verb.CHANGE, want.classes[1], TREE.classes[1])
    assert step.loss.packets == 0


def test_another_leaf_limit_is_changed_in_place() -> None:
    want = replace(TREE, qdiscs=(TREE.qdiscs[0], Qdisc(0x160000, 0x51A0016, Bfifo(3000)), TREE.qdiscs[2]))
    (step,) = plan(one(TREE), one(want), {("eth0", 0x160000): 176})
    assert (step.verb, step.loss.packets) == (Verb.CHANGE, 0)


def test_a_tbf_never_keeps_a_packet_that_its_smaller_burst_would_hold_for_ever() -> None:
    def cutting(burst: int, limit: int = 9000) -> LinkState:
        return replace(
            TREE, qdiscs=(TREE.qdiscs[0], Qdisc(0x160000, 0x51A0016, Tbf(10**9, burst, limit)), TREE.qdiscs[2])
        )

    (step,) = plan(one(cutting(140)), one(cutting(7)), {("eth0", 0x160000): 8})
    assert (step.verb, step.loss.packets) == (Verb.REPLACE, 8)
    for want in (cutting(200), cutting(140, limit=10)):
        (step,) = plan(one(cutting(140)), one(want), {("eth0", 0x160000): 8})
        assert (step.verb, step.loss.packets) == (Verb.CHANGE, 0)


def test_another_kind_of_leaf_loses_what_waits_in_it() -> None:
    want = replace(TREE, qdiscs=(TREE.qdiscs[0], Qdisc(0x160000, 0x51A0016, fq_codel()), TREE.qdiscs[2]))
    (step,) = plan(one(TREE), one(want), {("eth0", 0x160000): 176})
    assert (step.verb, step.loss.packets) == (Verb.REPLACE, 176)
    assert plan(one(TREE), one(want))[0].loss.packets is None


def test_a_smaller_fq_codel_limit_loses_what_exceeds_it() -> None:
    have = replace(TREE, qdiscs=(TREE.qdiscs[0], Qdisc(0x160000, 0x51A0016, fq_codel(100)), TREE.qdiscs[2]))
    want = replace(TREE, qdiscs=(TREE.qdiscs[0], Qdisc(0x160000, 0x51A0016, fq_codel(60)), TREE.qdiscs[2]))
    (step,) = plan(one(have), one(want), {("eth0", 0x160000): 70})
    assert (step.verb, step.loss.packets) == (Verb.CHANGE, 10)


@pytest.mark.parametrize("major", [0x51A, 0x51B])
def test_another_default_class_costs_the_whole_root(major: int) -> None:
    want = replace(TREE, qdiscs=(Qdisc(major << 16, ROOT, Htb(0x16)),), classes=())
    (step,) = plan(one(TREE), one(want), {("eth0", ROOT_HANDLE): 200})
    assert (step.verb, step.loss.packets) == (Verb.REPLACE, 200)


def test_a_class_that_goes_is_drained_first_after_its_filter_is_gone() -> None:
    extra = replace(
        classes_with(TREE, TcClass(0x51A0030, 0x51A0001, htb_class())),
        filters=(Filter(ROOT_HANDLE, 1, 0x0800, 0x80000800, U32(((0, 0, 0),), 0x51A0030)),),
    )
    steps = plan(one(extra), one(TREE), {("eth0", 0x51A0030): 7})
    assert verbs(steps) == [(Verb.DELETE, "Filter"), (Verb.DRAIN, "TcClass"), (Verb.DELETE, "TcClass")]
    assert [each.loss.packets for each in steps] == [0, 0, 7]
