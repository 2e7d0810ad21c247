# SPDX-License-Identifier: Apache-2.0
"""Random states of traffic control for Hypothesis, and what two of them have in common."""

from __future__ import annotations

from hypothesis import strategies as st
from msgspec.structs import replace

from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    INGRESS_HOOK,
    OUR_FILTERS,
    OUR_MAJORS,
    ROOT,
    U32,
    Bfifo,
    Bpf,
    Cake,
    Clsact,
    Filter,
    Flower,
    FqCodel,
    Htb,
    HtbClass,
    LinkState,
    NetworkState,
    Qdisc,
    Redirect,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
)
from qos.tc.tree import ALTERED

CLSACT_QDISC = Qdisc(0xFFFF0000, CLSACT, Clsact())
MINORS = (0x1, 0x2, 0x16, 0x24, 0x30)
PROTOCOLS = (0x0003, 0x0800, 0x86DD)
IFB = "ifb-eth0"


def htb_class(rate: int = 1000, *, ceil: int = 5000, prio: int = 0, quantum: int = 1514) -> HtbClass:
    return HtbClass(rate=rate, ceil=ceil, burst=1600, cburst=1600, prio=prio, quantum=quantum)


def fq_codel(limit: int = 1024) -> FqCodel:
    return FqCodel(limit=limit, target=4999, interval=99999, quantum=1514, memory_limit=2**25)


HTB_CLASSES = st.builds(
    htb_class,
    st.sampled_from([1000, 2000]),
    prio=st.integers(0, 2),
    quantum=st.sampled_from([1514, 3000]),
)
LEAVES = st.one_of(
    st.builds(Bfifo, st.sampled_from([3000, 9000])), st.builds(fq_codel, st.sampled_from([2, 1024])), st.none()
)


@st.composite
def _htb(draw: st.DrawFn) -> tuple[list[Qdisc], list[TcClass]]:
    major = draw(st.sampled_from(OUR_MAJORS))
    root = Qdisc(major << 16, ROOT, Htb(draw(st.sampled_from([0x24, 0x30]))))
    parents, classes, qdiscs = [root.handle], [], [root]
    for minor in draw(st.lists(st.sampled_from(MINORS), unique=True)):
        handle = major << 16 | minor
        classes.append(TcClass(handle, draw(st.sampled_from(parents)), draw(HTB_CLASSES)))
        parents.append(handle)
    inner = {each.parent for each in classes}
    free = {each.handle for each in classes} - inner
    handles = draw(st.permutations([minor << 16 for minor in (*MINORS, 0x99)]))
    for each, other in zip(sorted(free), handles, strict=False):
        options = draw(LEAVES)
        usual = (each & 0xFFFF) << 16
        if options is not None:
            handle = draw(st.sampled_from([usual, usual, other]))
            if handle not in {one.handle for one in qdiscs}:
                qdiscs.append(Qdisc(handle, each, options))
    return qdiscs, classes


@st.composite
def _classifiers(draw: st.DrawFn, parent: int, prefs: list[int], classids: list[int]) -> list[Filter]:
    """At most one protocol and one kind at each preference, as in the kernel."""
    found = []
    for pref in draw(st.lists(st.sampled_from(prefs), unique=True)):
        protocol = draw(st.sampled_from(PROTOCOLS))
        classid = st.sampled_from(classids)
        if draw(st.booleans()):
            words = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
            options = [U32(((0, word, 0xFF),), draw(classid)) for word in words]
            numbered = draw(st.booleans())
            found += [
                Filter(parent, pref, protocol, 0x80000801 + place if numbered else 0, each)
                for place, each in enumerate(options)
            ]
        else:
            numbers = draw(st.lists(st.integers(1, 3), min_size=1, unique=True))
            found += [
                Filter(parent, pref, protocol, each, Flower(draw(classid), dscp=draw(st.integers(0, 2))))
                for each in numbers
            ]
    return found


@st.composite
def _link(draw: st.DrawFn, name: str, ifb: bool) -> LinkState:
    qdiscs: list[Qdisc] = []
    classes: list[TcClass] = []
    filters: list[Filter] = []
    shape = draw(st.sampled_from(["htb", "htb", "htb", "cake", "none"]))
    if shape == "htb":
        qdiscs, classes = draw(_htb())
        if classes:
            filters += draw(_classifiers(qdiscs[0].handle, [1, 2], [each.handle for each in classes]))
    elif shape == "cake":
        bandwidth = draw(st.sampled_from([1000, 2000]))
        qdiscs = [Qdisc(draw(st.sampled_from(OUR_MAJORS)) << 16, ROOT, Cake(bandwidth, 1, 0))]
    if ifb or draw(st.booleans()):
        qdiscs.append(CLSACT_QDISC)
        pref = OUR_FILTERS[0]
        if draw(st.booleans()):
            program = Bpf(draw(st.sampled_from(["inferlane-1", "inferlane-2"])))
            filters.append(Filter(EGRESS_HOOK, pref, 3, draw(st.sampled_from([1, 2])), program))
        else:
            filters += draw(_classifiers(EGRESS_HOOK, [pref, pref + 1], [0x51A0024, 0x51A0030]))
        if ifb:
            # At a preference of its own: of one preference, both hooks list u32's filters (u32_walk()).
            filters.append(Filter(INGRESS_HOOK, OUR_FILTERS[8], 3, 0, Redirect(IFB)))
    size = draw(st.sampled_from([None, 20000, 30000]))
    return LinkState(name=name, qdiscs=tuple(qdiscs), classes=tuple(classes), filters=tuple(filters), gso_max_size=size)


@st.composite
def desired_states(draw: st.DrawFn) -> NetworkState:
    """What we may want of eth0, with and without its IFB."""
    ifb = draw(st.booleans())
    links = [draw(_link("eth0", ifb))]
    if ifb:
        links.append(replace(draw(_link(IFB, False)), ifb_for="eth0"))
    return NetworkState(links=tuple(links), table=draw(st.sampled_from(["", "classify_a", "classify_b"])))


FOREIGN_FILTERS = (
    Filter(EGRESS_HOOK, 5, 3, 1, UnreadFilter("basic", b"theirs")),
    Filter(INGRESS_HOOK, 49152, 0x0800, 1, UnreadFilter("basic", b"theirs, too")),
)
FOREIGN_TREE = LinkState(
    name="eth0",
    qdiscs=(Qdisc(0x10000, ROOT, Unread("hfsc", b"\x01\x00")), Qdisc(0x20000, 0x10001, Unread("sfq", b"perturb"))),
    classes=(
        TcClass(0x10001, 0x10000, UnreadClass("hfsc", b"sc")),
        TcClass(0x10002, 0x10001, UnreadClass("hfsc", b"sc 2")),
    ),
    filters=(Filter(0x10000, 1, 3, 1, UnreadFilter("basic", b"to 1:2")),),
)
# HTB and HFSC alike: a class with children has no leaf.
FOREIGN_TREE = replace(
    FOREIGN_TREE, qdiscs=(FOREIGN_TREE.qdiscs[0], Qdisc(0x20000, 0x10002, Unread("sfq", b"perturb")))
)


@st.composite
def observed_states(draw: st.DrawFn) -> NetworkState:
    """What may be there: something of ours, something of others, or both."""
    state = draw(desired_states())
    eth0, *others = state.links
    if draw(st.booleans()):
        clsact = () if CLSACT_QDISC in eth0.qdiscs else (CLSACT_QDISC,)
        theirs = draw(st.sampled_from([(), FOREIGN_FILTERS[:1], FOREIGN_FILTERS]))
        eth0 = replace(eth0, qdiscs=eth0.qdiscs + clsact, filters=eth0.filters + theirs)
    if not any(each.parent == ROOT for each in eth0.qdiscs) and draw(st.booleans()):
        eth0 = replace(
            eth0,
            qdiscs=FOREIGN_TREE.qdiscs + eth0.qdiscs,
            classes=FOREIGN_TREE.classes,
            filters=FOREIGN_TREE.filters + eth0.filters,
        )
    altered = ALTERED if state.table and draw(st.booleans()) else ""
    return replace(
        state,
        links=tuple(replace(each, gso_max_size=each.gso_max_size or 65536) for each in (eth0, *others)),
        table=state.table + altered,
    )


def foreign_part(state: NetworkState, *, root: bool) -> list[object]:
    """What others made; their root and what is below it only if asked for."""
    found: list[object] = []
    for link in state.links:
        found += [each for each in link.filters if each in FOREIGN_FILTERS]
        if root:
            found += [
                each for each in (*link.qdiscs, *link.classes) if each in (*FOREIGN_TREE.qdiscs, *FOREIGN_TREE.classes)
            ]
            found += [each for each in link.filters if each in FOREIGN_TREE.filters]
    return found


def alike(state: NetworkState, *, clsact: bool = True, gso: bool = True) -> dict[str, object]:
    """A state without what cannot be compared: order, numbers that the kernel gave, an inner class's turn."""
    # What somebody did to a table is not done again for them.
    return {"table": state.table.removesuffix(ALTERED)} | {
        link.name: (
            link.ifb_for,
            {each for each in link.qdiscs if clsact or each != CLSACT_QDISC},
            {_class(each, link) for each in link.classes},
            sorted(
                repr(replace(each, handle=0) if isinstance(each.options, U32 | Redirect) else each)
                for each in link.filters
            ),
            link.gso_max_size if gso else None,
        )
        for link in state.links
    }


def _class(each: TcClass, link: LinkState) -> TcClass:
    inner = any(other.parent == each.handle for other in link.classes)
    if inner and isinstance(each.options, HtbClass):
        return replace(each, options=replace(each.options, prio=0, quantum=0))
    return each


ROOT_HANDLE = 0x51A0000
TREE = LinkState(
    name="eth0",
    qdiscs=(
        Qdisc(ROOT_HANDLE, ROOT, Htb(0x24)),
        Qdisc(0x160000, 0x51A0016, Bfifo(9000)),
        Qdisc(0x240000, 0x51A0024, Bfifo(9000)),
    ),
    classes=(
        TcClass(0x51A0001, ROOT_HANDLE, htb_class(9000)),
        TcClass(0x51A0016, 0x51A0001, htb_class(1000)),
        TcClass(0x51A0024, 0x51A0001, htb_class(2000)),
    ),
)
"""51a: over 51a:1 over 51a:16 and 51a:24 with a leaf each."""


def one(link: LinkState) -> NetworkState:
    """A namespace with this device."""
    return NetworkState(links=(link,))
