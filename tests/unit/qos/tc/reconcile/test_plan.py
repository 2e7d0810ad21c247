# SPDX-License-Identifier: Apache-2.0
"""Plans between any two states, carried out on a kernel in memory that refuses and loses what the real one does."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qos.tc.reconcile.plan import Step, Table, Verb, agree, ours, plan
from qos.tc.state import (
    EGRESS_HOOK,
    FOREIGN_TABLE,
    ROOT,
    U32,
    Bfifo,
    Bpf,
    Filter,
    Htb,
    LinkState,
    NetworkState,
    Qdisc,
    Tbf,
    TcClass,
)
from qos.tc.tree import ALTERED, foreign_filters
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.tc_applying import applied
from tests.fakes.tc_states import (
    CLSACT_QDISC,
    FOREIGN_FILTERS,
    FOREIGN_TREE,
    ROOT_HANDLE,
    TREE,
    alike,
    desired_states,
    foreign_part,
    htb_class,
    observed_states,
    one,
)


def verbs(steps: tuple[Step, ...]) -> list[tuple[Verb, str]]:
    return [(each.verb, type(each.subject).__name__) for each in steps]


def classes_with(link: LinkState, *new: TcClass) -> LinkState:
    by_handle = {each.handle: each for each in (*link.classes, *new)}
    return replace(link, classes=tuple(by_handle.values()))


def test_nothing_to_do() -> None:
    assert plan(one(TREE), one(TREE)) == ()
    assert agree(one(TREE), one(TREE))


def test_a_first_plan_builds_from_the_top_down() -> None:
    steps = plan(one(LinkState(name="eth0")), one(TREE))
    assert {each.verb for each in steps} == {Verb.ADD}
    # Each class with its queue, and last the default one, where packets come at once.
    pairs = [each for pair in zip(TREE.classes[1:], TREE.qdiscs[1:], strict=True) for each in pair]
    assert [each.subject for each in steps] == [TREE.qdiscs[0], TREE.classes[0], *pairs]
    assert [each.loss.packets for each in steps] == [0, 0, 0, 0, 0, None]
    assert steps[0].loss.text == "what is sent while the kernel changes the root, about 1 ms"


def test_the_default_class_is_the_last_to_come() -> None:
    first_is_default = replace(TREE, qdiscs=(Qdisc(ROOT_HANDLE, ROOT, Htb(0x16)), *TREE.qdiscs[1:]))
    steps = plan(one(LinkState(name="eth0")), one(first_is_default))
    assert [each.subject for each in steps][-2:] == [TREE.classes[1], TREE.qdiscs[1]]


def test_behind_a_new_class_all_its_queues_come_at_once() -> None:
    inner = Qdisc(0x40160000, 0x160001, Bfifo(9))
    want = replace(TREE, qdiscs=(TREE.qdiscs[0], Qdisc(0x160000, 0x51A0016, Tbf(9, 9, 9)), TREE.qdiscs[2], inner))
    steps = plan(one(LinkState(name="eth0")), one(want))
    assert [each.subject for each in steps][2:5] == [TREE.classes[1], want.qdiscs[1], inner]


def test_a_program_is_replaced_at_once_and_filters_of_others_stay() -> None:
    def with_program(name: str) -> LinkState:
        mine = Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf(name))
        return replace(TREE, qdiscs=(*TREE.qdiscs, CLSACT_QDISC), filters=(*FOREIGN_FILTERS, mine))

    want = replace(with_program("inferlane-2"), filters=with_program("inferlane-2").filters[2:])
    (step,) = plan(one(with_program("inferlane-1")), one(want))
    assert (step.verb, step.subject) == (Verb.REPLACE, want.filters[0])


def test_u32_filters_come_before_those_that_they_succeed_go() -> None:
    def with_word(word: int, handle: int) -> LinkState:
        return replace(TREE, filters=(Filter(ROOT_HANDLE, 1, 0x0800, handle, U32(((0, word, 0xFC),), 0x51A0016)),))

    steps = plan(one(with_word(1, 0x80000800)), one(with_word(2, 0)))
    assert verbs(steps) == [(Verb.ADD, "Filter"), (Verb.DELETE, "Filter")]
    assert steps[1].subject == with_word(1, 0x80000800).filters[0], "deleted by the handle that the kernel gave"
    assert plan(one(with_word(1, 0x80000800)), one(with_word(1, 0))) == ()


def test_clsact_goes_only_when_nobody_uses_it() -> None:
    mine = Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-1"))
    bare = LinkState(name="eth0")
    made = replace(bare, qdiscs=(CLSACT_QDISC,), filters=(mine,))
    assert verbs(plan(one(made), one(bare))) == [(Verb.DELETE, "Filter"), (Verb.DELETE, "Qdisc")]
    shared = replace(made, filters=(mine, *FOREIGN_FILTERS))
    assert verbs(plan(one(shared), one(bare))) == [(Verb.DELETE, "Filter")]
    unused = replace(made, filters=())
    assert plan(one(unused), one(bare)) == (), "somebody else may have made it"
    assert verbs(plan(one(unused), one(bare), to_snapshot=True)) == [(Verb.DELETE, "Qdisc")]


def test_a_foreign_root_stays_unless_its_place_is_wanted() -> None:
    assert plan(one(FOREIGN_TREE), one(LinkState(name="eth0"))) == ()
    assert plan(one(FOREIGN_TREE), NetworkState()) == ()
    adopted = plan(one(FOREIGN_TREE), one(TREE), {("eth0", 0x10000): 9})
    assert (adopted[0].verb, adopted[0].before, adopted[0].loss.packets) == (Verb.REPLACE, FOREIGN_TREE.qdiscs[0], 9)


def test_what_others_put_below_their_root_meanwhile_stays() -> None:
    before = replace(FOREIGN_TREE, qdiscs=FOREIGN_TREE.qdiscs[:1], classes=(), filters=())
    assert plan(one(FOREIGN_TREE), one(before), to_snapshot=True) == ()


def test_a_thousand_classes_are_planned_and_planned_again() -> None:
    classes = [TcClass(ROOT_HANDLE | minor, 0x51A0001, htb_class()) for minor in range(2, 1002)]
    many = replace(
        TREE,
        qdiscs=(TREE.qdiscs[0], *(Qdisc((each.handle & 0xFFFF) << 16, each.handle, Bfifo(9)) for each in classes)),
        classes=(TREE.classes[0], *classes),
    )
    assert len(plan(one(LinkState(name="eth0")), one(many))) == 2002
    assert plan(one(many), one(many)) == ()
    few = replace(TREE, qdiscs=many.qdiscs[:2], classes=many.classes[:2])
    assert len(plan(one(many), one(few))) == 2 * 999, "drain and delete"


@given(observed_states(), desired_states(), st.data())
def test_any_state_becomes_any_other_with_the_losses_that_were_said(
    observed: NetworkState, desired: NetworkState, data: st.DataObject
) -> None:
    kernel = FakeKernel.of(observed)
    for device in kernel.devices.values():
        leaves = [each for each in device.classes if not device.inner(each)]
        places = leaves or ([ROOT] if device.qdiscs else [0])
        device.waiting = {each: data.draw(st.integers(0, 5)) for each in places}
    backlogs = {(name, handle): n for name in kernel.devices for handle, n in kernel.backlogs(name).items()}
    steps = plan(kernel.observe(["eth0"]), desired, backlogs)
    losses: list[int] = []
    outcome = applied(kernel, desired, steps=steps, drain_s=0.0, before_step=lambda _: losses.append(kernel.lost))
    assert outcome.failure is None
    lost = [after - before for before, after in pairwise([*losses, kernel.lost])]
    assert lost == [each.loss.packets for each in outcome.done]
    assert all(each.loss.packets in (None, packets) for each, packets in zip(steps, lost, strict=True))
    now = kernel.observe(["eth0"])
    assert plan(now, desired) == ()
    root_adopted = any(each.parent == ROOT for each in desired.links[0].qdiscs)
    assert foreign_part(now, root=not root_adopted) == foreign_part(observed, root=not root_adopted)
    clsact = CLSACT_QDISC in desired.links[0].qdiscs and not foreign_filters(observed.links[0])
    gso = desired.links[0].gso_max_size is not None and all(each.gso_max_size for each in desired.links)
    assert alike(ours(now), clsact=clsact, gso=gso) == alike(desired, clsact=clsact, gso=gso)


def table_steps(old: str, new: str) -> list[Step]:
    return list(plan(replace(one(TREE), table=old), replace(one(TREE), table=new)))


def test_a_table_is_made_replaced_and_removed_without_loss() -> None:
    (add,) = table_steps("", "classify_1")
    assert (add.verb, add.subject, add.before) == (Verb.ADD, Table("classify_1"), None)
    (other,) = table_steps("classify_1", "classify_2")
    assert (other.verb, other.subject, other.before) == (Verb.REPLACE, Table("classify_2"), Table("classify_1"))
    (gone,) = table_steps("classify_1", "")
    assert (gone.verb, gone.subject) == (Verb.DELETE, Table("classify_1"))
    assert {each.loss.packets for each in (add, other, gone)} == {0}
    assert {each.device for each in (add, other, gone)} == {""}
    assert table_steps("classify_1", "classify_1") == []


def test_a_table_that_somebody_altered_is_made_again() -> None:
    (step,) = table_steps("classify_1" + ALTERED, "classify_1")
    assert (step.verb, step.subject) == (Verb.REPLACE, Table("classify_1"))


def test_a_table_of_somebody_else_is_let_be() -> None:
    assert table_steps(FOREIGN_TABLE, "") == []
    assert not agree(replace(one(TREE), table=FOREIGN_TABLE), replace(one(TREE), table="classify_1"))


def test_a_table_comes_when_all_classes_are_there_and_before_any_goes() -> None:
    extra = classes_with(TREE, TcClass(0x51A0030, 0x51A0001, htb_class()))
    have = NetworkState(links=(extra, LinkState(name="eth1")), table="classify_1")
    want = NetworkState(links=(TREE, replace(extra, name="eth1")), table="classify_2")
    steps = [(each.verb, type(each.subject).__name__, each.device) for each in plan(have, want)]
    place = steps.index((Verb.REPLACE, "Table", ""))
    assert {(verb, device) for verb, _, device in steps[:place]} == {(Verb.ADD, "eth1")}
    assert steps[place + 1 :] == [(Verb.DRAIN, "TcClass", "eth0"), (Verb.DELETE, "TcClass", "eth0")]
