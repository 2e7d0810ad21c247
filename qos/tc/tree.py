# SPDX-License-Identifier: Apache-2.0
"""What of a device's state is ours, and its tree: what goes takes along what hangs below it."""

from __future__ import annotations

import msgspec

from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    FOREIGN_TABLE,
    INGRESS_HOOK,
    OUR_CHAIN,
    OUR_FILTERS,
    ROOT,
    U32,
    ClassOptions,
    Clsact,
    Filter,
    FilterOptions,
    LinkState,
    NetworkState,
    Qdisc,
    QdiscOptions,
    Redirect,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
    is_our_qdisc,
)

__all__ = [
    "ALTERED",
    "Tree",
    "at_hook",
    "concerned",
    "foreign_filters",
    "kind_of",
    "our_table",
    "ours",
    "root_of",
    "same_options",
    "snapshot",
    "wanted",
]

# Qdiscs whose classes somebody made; those of others (prio's bands, fq_codel's flows) come and go by themselves.
_WITH_CLASSES = {"htb", "hfsc", "drr", "qfq"}
_HOOKS_MAJOR = CLSACT >> 16
ALTERED = " (altered)"
"""Behind the name of a table's chain: what is in it is no longer what we put there."""


def kind_of(options: QdiscOptions | ClassOptions | FilterOptions) -> str:
    """The kernel's name of its kind, as far as we read it."""
    if isinstance(options, Unread | UnreadClass | UnreadFilter):
        return options.kind
    return str(type(options).__struct_config__.tag)


def same_options(
    one: QdiscOptions | ClassOptions | FilterOptions, other: QdiscOptions | ClassOptions | FilterOptions
) -> bool:
    """Whether they are equal, as far as we can tell: what we do not read holds counters beside its options."""
    if isinstance(one, Unread | UnreadClass | UnreadFilter) and type(one) is type(other):
        return kind_of(one) == kind_of(other)
    return one == other


def at_hook(each: Filter) -> bool:
    """Whether it hangs at a clsact hook, which we share with others."""
    return each.parent in (INGRESS_HOOK, EGRESS_HOOK)


def root_of(link: LinkState) -> Qdisc | None:
    """The root qdisc that somebody made."""
    return next((each for each in link.qdiscs if each.parent == ROOT), None)


def foreign_filters(link: LinkState) -> bool:
    """Whether somebody else has a filter at this device's hooks."""
    return any(at_hook(each) and each.pref not in OUR_FILTERS for each in link.filters)


def ours(state: NetworkState) -> NetworkState:
    """What we made: our roots with all below them, our filters at the hooks, and clsact unless only others use it."""
    links = tuple(_part(each, adopt=False, clsact=False) for each in state.links)
    return msgspec.structs.replace(state, links=links, table=our_table(state.table))


def our_table(table: str) -> str:
    """A state's nftables table if it is ours, else ""."""
    return "" if table == FOREIGN_TABLE else table


def concerned(observed: NetworkState, desired: NetworkState) -> NetworkState:
    """What a change to `desired` can touch: ours, and a foreign root that it replaces."""
    links = []
    for each in observed.links:
        wanted = desired.link(each.name)
        part = _part(each, adopt=wanted is not None and root_of(wanted) is not None, clsact=True)
        sized = each.ifb_for is not None or (wanted is not None and wanted.gso_max_size is not None)
        links.append(msgspec.structs.replace(part, gso_max_size=each.gso_max_size if sized else None))
    return msgspec.structs.replace(observed, links=tuple(links), table=our_table(observed.table))


def wanted(link: LinkState) -> LinkState:
    """What of a desired state can be asked for: where it was once observed, others' filters at the hooks are in it."""
    return _part(link, adopt=True, clsact=True)


def snapshot(observed: NetworkState, desired: NetworkState) -> NetworkState:
    """What `concerned` says, as it can be put back: a u32 filter is numbered anew, a table is whole or not there."""
    part = concerned(observed, desired)
    links = (
        msgspec.structs.replace(each, filters=tuple(map(_renumbered, filter(_leads_somewhere, each.filters))))
        for each in part.links
    )
    table = part.table.removesuffix(ALTERED)
    return msgspec.structs.replace(part, links=tuple(links), table="" if table == OUR_CHAIN else table)


def _leads_somewhere(each: Filter) -> bool:
    """Not so a redirection to an IFB that is gone or down: nobody could make it, nor want it back."""
    return not isinstance(each.options, Redirect) or each.options.to != ""


def _renumbered(each: Filter) -> Filter:
    return msgspec.structs.replace(each, handle=0) if isinstance(each.options, U32) else each


def _part(link: LinkState, *, adopt: bool, clsact: bool) -> LinkState:
    root = root_of(link)
    if root is not None and not adopt and not is_our_qdisc(root):
        root = None
    majors = _majors(link, root)
    explicit = {
        each.handle >> 16
        for each in link.qdiscs
        if each.handle >> 16 in majors and kind_of(each.options) in _WITH_CLASSES
    }
    hooked = [each for each in link.filters if at_hook(each) and each.pref in OUR_FILTERS]
    shared = clsact or bool(hooked) or not foreign_filters(link)
    return msgspec.structs.replace(
        link,
        qdiscs=tuple(
            each
            for each in link.qdiscs
            if (shared if isinstance(each.options, Clsact) else _below(each, majors) or each is root)
        ),
        classes=tuple(each for each in link.classes if each.handle >> 16 in explicit),
        filters=tuple(each for each in link.filters if each.parent >> 16 in majors or each in hooked),
    )


def _majors(link: LinkState, root: Qdisc | None) -> set[int]:
    """Majors of a root and of all qdiscs below it: a class has the major of its qdisc."""
    majors = set() if root is None else {root.handle >> 16}
    while found := {each.handle >> 16 for each in link.qdiscs if _below(each, majors)} - majors:
        majors |= found
    return majors


def _below(qdisc: Qdisc, majors: set[int]) -> bool:
    return qdisc.parent >> 16 in majors and qdisc.parent >> 16 != _HOOKS_MAJOR


class Tree:
    """A device's qdiscs, classes and filters while steps change them."""

    def __init__(self, link: LinkState) -> None:
        self.clsact = next((each for each in link.qdiscs if isinstance(each.options, Clsact)), None)
        self.qdiscs = {each.handle: each for each in link.qdiscs if each is not self.clsact}
        self.classes = {each.handle: each for each in link.classes}
        self.filters = list(link.filters)
        self._leaves = {each.parent: each for each in self.qdiscs.values()}
        self._children: dict[int, set[int]] = {}
        for each in self.classes.values():
            self._children.setdefault(each.parent, set()).add(each.handle)

    @property
    def root(self) -> Qdisc | None:
        """The root qdisc."""
        return self._leaves.get(ROOT)

    def children(self, handle: int) -> set[int]:
        """Classes right below a class or qdisc."""
        return self._children.get(handle, set())

    def leaf(self, parent: int) -> Qdisc | None:
        """The qdisc at a class."""
        return self._leaves.get(parent)

    def depth(self, handle: int) -> int:
        """How many qdiscs and classes are above it."""
        above = self.classes.get(handle) or self.qdiscs.get(handle)
        if above is not None:
            return 0 if above.parent == ROOT else 1 + self.depth(above.parent)
        major = handle & 0xFFFF0000
        return 1 + self.depth(major) if major != handle and major in self.qdiscs else 0

    def put(self, subject: Qdisc | TcClass) -> None:
        """Add an object, or change it in place."""
        if isinstance(subject, TcClass):
            self.classes[subject.handle] = subject
            self._children.setdefault(subject.parent, set()).add(subject.handle)
        elif isinstance(subject.options, Clsact):
            self.clsact = subject
        else:
            self.qdiscs[subject.handle] = self._leaves[subject.parent] = subject

    def drop_qdisc(self, qdisc: Qdisc) -> None:
        """Remove a qdisc with its classes and what hangs below them."""
        del self.qdiscs[qdisc.handle], self._leaves[qdisc.parent]
        self._drop_filters(qdisc.handle)
        major = qdisc.handle >> 16
        for handle in [each for each in self.classes if each >> 16 == major]:
            if handle in self.classes:
                self.drop_class(handle)
        for parent in [each for each in self._leaves if each >> 16 == major]:
            if parent in self._leaves:
                self.drop_qdisc(self._leaves[parent])

    def drop_class(self, handle: int) -> None:
        """Remove a class with what hangs below it."""
        for child in list(self.children(handle)):
            self.drop_class(child)
        self.children(self.classes.pop(handle).parent).discard(handle)
        self._drop_filters(handle)
        if handle in self._leaves:
            self.drop_qdisc(self._leaves[handle])

    def _drop_filters(self, parent: int) -> None:
        if any(each.parent == parent for each in self.filters):
            self.filters = [each for each in self.filters if each.parent != parent]
