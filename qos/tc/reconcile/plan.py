# SPDX-License-Identifier: Apache-2.0
"""From what the kernel has to what it shall have: the steps, each with what it can lose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import msgspec

from qos.tc.reconcile.draft import Draft, loss_of
from qos.tc.reconcile.steps import Device, Gso, Loss, Step, Subject, Table, Verb, takes_two
from qos.tc.state import Clsact, LinkState, NetworkState, Qdisc, TcClass, is_our_qdisc
from qos.tc.tree import at_hook, concerned, foreign_filters, our_table, ours, root_of, snapshot, wanted

__all__ = [
    "Device",
    "Gso",
    "Loss",
    "Step",
    "Subject",
    "Table",
    "Verb",
    "agree",
    "ours",
    "plan",
    "snapshot",
    "takes_two",
]

_UNASKED: Mapping[tuple[str, int], int] = MappingProxyType({})


def plan(
    observed: NetworkState,
    desired: NetworkState,
    backlogs: Mapping[tuple[str, int], int] = _UNASKED,
    *,
    to_snapshot: bool = False,
) -> tuple[Step, ...]:
    """The steps from `observed` to `desired`; none where nothing differs.

    backlogs: packets that wait now, by device and handle of a qdisc or class; handle 0 is the qdisc that the kernel
    made. to_snapshot: `desired` was observed before, so a clsact that it lacks is one that we made since.
    """
    want = {each.name: wanted(each) for each in desired.links}
    have = {each.name: _beside(each, want.get(each.name)) for each in concerned(observed, desired).links}
    made = [each for each in want.values() if each.ifb_for is not None and _ifb_for(have.get(each.name)) is None]
    gone = [each for each in have.values() if each.ifb_for is not None and each.name not in want]
    steps = [Step(verb=Verb.ADD, device=each.name, subject=Device(each.name, each.ifb_for or "")) for each in made]
    kept = (want.keys() | have.keys()) - {each.name for each in gone}
    drafts = []
    # IFBs first: what is redirected to one finds its queues there.
    for name in sorted(kept, key=lambda name: (_ifb_for(want.get(name)) is None, name)):
        link = LinkState(name=name)
        draft = Draft(have.get(name, link), want.get(name, link), backlogs)
        seen = observed.link(name) or link
        made_by_us = to_snapshot or seen.ifb_for is not None or any(map(at_hook, draft.tree.filters))
        draft.clsact_may_go = made_by_us and not foreign_filters(seen)
        drafts.append(draft)
    steps += [step for draft in drafts for step in draft.coming()]
    # Between: the classes that it sends to are there, and nothing is sent any more to those that go.
    steps += _to_table(our_table(observed.table), desired.table)
    steps += [step for draft in drafts for step in draft.going()]
    for each in gone:
        steps += _without_ifb(each, backlogs)
    return tuple(steps)


def _to_table(old: str, new: str) -> list[Step]:
    if old == new:
        return []
    if not new:
        return [Step(verb=Verb.DELETE, device="", subject=Table(old))]
    verb, before = (Verb.REPLACE, Table(old)) if old else (Verb.ADD, None)
    return [Step(verb=verb, device="", subject=Table(new), before=before)]


def agree(observed: NetworkState, desired: NetworkState) -> bool:
    """Whether the kernel has what it shall have."""
    return not plan(observed, desired)


def _beside(link: LinkState, want: LinkState | None) -> LinkState:
    """Where somebody else's root is to stay, what is below it is theirs: nothing that we put there, we take away."""
    old, new = root_of(link), None if want is None else root_of(want)
    if want is None or old is None or new is None or is_our_qdisc(old) or old.handle != new.handle:
        return link
    return msgspec.structs.replace(
        link,
        qdiscs=tuple(
            each for each in link.qdiscs if isinstance(each.options, Clsact) or each.handle in _handles(want.qdiscs)
        ),
        classes=tuple(each for each in link.classes if each.handle in _handles(want.classes)),
        filters=tuple(
            each
            for each in link.filters
            if at_hook(each) or (each.parent, each.pref) in {(one.parent, one.pref) for one in want.filters}
        ),
    )


def _handles(objects: Collection[Qdisc | TcClass]) -> set[int]:
    return {each.handle for each in objects}


def _ifb_for(link: LinkState | None) -> str | None:
    return None if link is None else link.ifb_for


def _without_ifb(link: LinkState, backlogs: Mapping[tuple[str, int], int]) -> list[Step]:
    device = Device(link.name, link.ifb_for or "")
    root = root_of(link)
    if root is None:
        loss = loss_of(backlogs.get((link.name, 0), 0), "waits in the kernel's own qdisc")
        return [Step(verb=Verb.DELETE, device=link.name, subject=device, loss=loss)]
    loss = loss_of(backlogs.get((link.name, root.handle)), "still waits after draining")
    return [
        Step(verb=Verb.DRAIN, device=link.name, subject=root),
        Step(verb=Verb.DELETE, device=link.name, subject=device, loss=loss),
    ]
