# SPDX-License-Identifier: Apache-2.0
"""From what the kernel lists to a device's state: what is ours is read, what is not is kept as it came."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from qos.tc.capabilities import LinkFacts
from qos.tc.kernel.attributes import nested_attributes, read_text
from qos.tc.kernel.filter_codec import decode_filter
from qos.tc.kernel.links import shaped_by_ifb
from qos.tc.kernel.qdisc_codec import decode_class, decode_qdisc
from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    INGRESS_HOOK,
    OUR_FILTERS,
    OUR_MAJORS,
    ROOT,
    Clsact,
    Filter,
    LinkState,
    Qdisc,
    Redirect,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
)

__all__ = ["TC_MESSAGE", "Listed", "filter_parents", "link_state", "parse_tc"]

TC_MESSAGE = struct.Struct("=BBHiIII")
"""struct tcmsg: family, two pads, index, handle, parent, info."""

_KIND, _OPTIONS, _STATS2 = 1, 2, 7
# Kinds whose classes somebody made. Those of others (bands of prio, flows of fq_codel) come and go by themselves.
_WITH_CLASSES = frozenset({"drr", "hfsc", "htb", "qfq"})
_WITH_FILTERS = _WITH_CLASSES | {"ets", "multiq", "prio"}  # those that may hang below a root and choose by filters
_NODE = 0xFFF  # of an u32 handle: its number in the hash table


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One qdisc, class or filter as a dump lists it."""

    index: int
    handle: int
    parent: int
    info: int
    kind: str
    options: bytes | None
    statistics: bytes | None


def parse_tc(message: bytes) -> Listed:
    """The body of an RTM_NEWQDISC, RTM_NEWTCLASS or RTM_NEWTFILTER message."""
    _, _, _, index, handle, parent, info = TC_MESSAGE.unpack_from(message)
    found = nested_attributes(message[TC_MESSAGE.size :])
    return Listed(
        index=index,
        handle=handle,
        parent=parent,
        info=info,
        kind=read_text(found.get(_KIND)),
        options=found.get(_OPTIONS),
        statistics=found.get(_STATS2),
    )


def filter_parents(qdiscs: Iterable[Listed]) -> list[int]:
    """Where on a device filters can be: its hooks, its root, and what else chooses among classes.

    The kernel lists those of one place at a time, and a thousand leaves would be a thousand questions.
    """
    parents = []
    for each in qdiscs:
        if each.parent == CLSACT:  # of clsact, and of its elder `ingress`, which has one hook
            parents += [INGRESS_HOOK, EGRESS_HOOK] if each.kind == "clsact" else [INGRESS_HOOK]
        elif each.handle and (each.parent == ROOT or each.kind in _WITH_FILTERS):
            parents.append(each.handle)
    return parents


def link_state(
    facts: LinkFacts,
    names: Mapping[int, str],
    *,
    qdiscs: Sequence[Listed],
    classes: Iterable[Listed],
    filters: Mapping[int, Iterable[Listed]],
) -> LinkState:
    """The state of one device. `names` are those of all devices, by index; `filters` are by their parent."""
    made = [each for each in qdiscs if each.handle]
    ours = _our_majors(made)
    read = [_filter(parent, each, names, ours) for parent, listed in filters.items() for each in listed]
    return LinkState(
        name=facts.name,
        ifb_for=shaped_by_ifb(facts),
        qdiscs=tuple(sorted((_qdisc(each, ours) for each in made), key=lambda each: each.handle)),
        classes=tuple(
            sorted((_class(each, ours) for each in classes if each.kind in _WITH_CLASSES), key=lambda each: each.handle)
        ),
        filters=tuple(
            sorted((each for each in read if each is not None), key=lambda each: (each.parent, each.pref, each.handle))
        ),
        gso_max_size=facts.gso_max_size,
    )


def _our_majors(qdiscs: Iterable[Listed]) -> set[int]:
    """Majors of our root and of what hangs below it."""
    ours = {each.handle >> 16 for each in qdiscs if each.parent == ROOT and each.handle >> 16 in OUR_MAJORS}
    while below := {each.handle >> 16 for each in qdiscs if each.parent >> 16 in ours} - ours:
        ours |= below
    return ours


def _qdisc(listed: Listed, ours: set[int]) -> Qdisc:
    options = decode_qdisc(listed.kind, listed.options)
    if listed.handle >> 16 not in ours and not isinstance(options, Clsact):
        options = Unread(listed.kind, listed.options)
    return Qdisc(listed.handle, listed.parent, options)


def _class(listed: Listed, ours: set[int]) -> TcClass:
    mine = listed.handle >> 16 in ours
    options = decode_class(listed.kind, listed.options) if mine else UnreadClass(listed.kind, listed.options)
    return TcClass(listed.handle, listed.handle & 0xFFFF0000 if listed.parent == ROOT else listed.parent, options)


def _filter(parent: int, listed: Listed, names: Mapping[int, str], ours: set[int]) -> Filter | None:
    pref, protocol = listed.info >> 16, int.from_bytes((listed.info & 0xFFFF).to_bytes(2, "little"), "big")
    options = decode_filter(listed.kind, listed.options, protocol, names)
    if options is None:
        return None
    at_hook = parent in (INGRESS_HOOK, EGRESS_HOOK)
    if not (pref in OUR_FILTERS if at_hook else parent >> 16 in ours):
        options = UnreadFilter(listed.kind, listed.options)
    # Of an u32 handle the kernel chose the table, one for each preference, whatever handle was asked for.
    handle = listed.handle & _NODE if listed.kind == "u32" and isinstance(options, Redirect) else listed.handle
    return Filter(parent, pref, protocol, handle, options)
