# SPDX-License-Identifier: Apache-2.0
"""The queues that each engine makes of the classes of one link, and what it cannot keep of their promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from qos.tc.design.shape import ETHERNET_HEADER, Link, bfifo, fq_codel, htb_class, least_queue, splitter
from qos.tc.policy import LinkClass
from qos.tc.state import ROOT, Cake, Ets, Fq, Htb, HtbClass, Qdisc, QdiscOptions, TcClass
from qos.units import format_duration

__all__ = ["LOSSES", "Queues", "cake", "ets", "fq", "htb", "minor_of", "most_split"]

LOSSES = {
    "cake": "it has four fixed tins, so share, ceiling and queue of classes are not kept, and {sharing}",
    "ets": "it has no rate, so egress, ceiling and overhead are not kept and the queue must form in this device; "
    "classes above the default one are served first without limit, {sharing}",
    "fq": "it has three bands and no rate, so egress, share, ceiling, queue and overhead are not kept, and {sharing}",
    "marks": "egress, share, ceiling and queue are not kept: packets carry their marks and priorities, no more",
}
"""Of the config's keys; `sharing` says which classes are one."""
_DIFFSERV4 = 1
_INNER = 0x4000_0000
"""Of handles of the queue behind a tbf: above the first 1,022 minors, below what kernels give."""
_ETS_BANDS = 16  # TCQ_ETS_MAX_BANDS
_PRIORITIES = 16  # TC_PRIO_MAX + 1
# Tins of diffserv4 by minor (bulk_order in net/sched/sch_cake.c).
_BULK, _BEST_EFFORT, _VIDEO, _VOICE = 1, 2, 3, 4
# fq's packet priorities, one in each band of its priomap.
_FQ_PRIORITIES = (6, 4, 2)
_FQ_PACKETS, _FQ_FLOW_PACKETS = 10_000, 100  # the kernel's defaults (net/sched/sch_fq.c)


class Queues(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine makes on one device."""

    qdiscs: tuple[Qdisc, ...]
    classes: tuple[TcClass, ...] = ()
    handles: dict[str, int]
    """The packet priority that brings a packet into each class's queue."""
    labels: dict[int, str]
    """Handles of tc classes and their qdiscs -> class names."""
    by_classid: bool
    """Whether flower and u32 can choose a class; else only packet priorities do."""
    sharing: str = ""
    """Classes that are one here, for people."""
    warnings: tuple[str, ...] = ()


def most_split(classes: Sequence[LinkClass]) -> bool:
    """Whether there are numbers for a second queue in each class."""
    return all(minor_of(each) << 16 < _INNER for each in classes)


def minor_of(each: LinkClass) -> int:
    """Of its tc class. Where there is no tree of ours, the low four bits still choose a band (`prio2band`)."""
    return (each.rank + 1) << 4 | each.priority


def htb(link: Link, classes: Sequence[LinkClass], major: int, *, leaf: str) -> Queues:
    """A class each with its share, ceiling and queue. leaf: `fq_codel` or `bfifo`, behind a tbf to cut trains."""
    root, top = major << 16, major << 16 | 1
    default = next(each for each in classes if each.default)
    qdiscs = [Qdisc(root, ROOT, Htb(default=minor_of(default)))]
    tree = [TcClass(top, root, htb_class(link, share=1.0, ceiling=1.0, prio=0))]
    labels: dict[int, str] = {}
    short = []
    for each in classes:
        handle, options = root | minor_of(each), _promise(link, each)
        tree.append(TcClass(handle, top, options))
        # Cut up, a train still comes at once, and bulk without room for one reached 15.5 of 19 Mbit/s. What is above
        # the default class is asked to be prompt, not bulky: its queue stays as short as it says.
        own = msgspec.structs.replace(link, trains=not link.split or each.rank >= default.rank)
        queues = _leaves(own, each, handle, options.rate, leaf)
        qdiscs += queues
        labels |= {handle: each.name, **{queue.handle: each.name for queue in queues}}
        if options.rate * each.queue_s < least_queue(own):
            short.append(f"{each.name} {format_duration(round(least_queue(own) / options.rate, 3))}")
    return Queues(
        qdiscs=tuple(qdiscs),
        classes=tuple(tree),
        handles={each.name: root | minor_of(each) for each in classes},
        labels=labels,
        by_classid=True,
        warnings=tuple(_htb_warnings(link, classes, short)),
    )


def _leaves(link: Link, each: LinkClass, parent: int, rate: int, leaf: str) -> list[Qdisc]:
    """The queue of one class; tbf's own child is the bfifo already."""
    make, first = (fq_codel if leaf == "fq_codel" else bfifo), minor_of(each) << 16
    if not link.split:
        return [Qdisc(first, parent, make(link, rate, each.queue_s))]
    queues = [Qdisc(first, parent, splitter(link, rate, each.queue_s))]
    if leaf == "fq_codel":
        queues.append(Qdisc(_INNER | first, first | 1, make(link, rate, each.queue_s)))
    return queues


def _promise(link: Link, each: LinkClass) -> HtbClass:
    return htb_class(link, share=each.share, ceiling=each.ceiling, prio=min(each.rank, 7))


def _htb_warnings(link: Link, classes: Sequence[LinkClass], short: Sequence[str]) -> Iterator[str]:
    if short:
        must = f"a train of {least_queue(link)} bytes" + (
            ", or 16 packets above the default class" if link.split else ""
        )
        yield (
            f"a queue must hold {must}, so at their guaranteed rates these may grow longer than their queue says: "
            f"{_listed(short)}"
        )
    if len(classes) > 8:
        yield "HTB borrows in eight orders: the eighth class and those after it borrow in turns, by their shares"


def cake(link: Link, classes: Sequence[LinkClass], major: int) -> Queues:
    """Four tins by rank: above the default class Voice and Video, it is Best Effort, Bulk below it."""
    default = next(each for each in classes if each.default)
    handle = major << 16
    tins = {each.name: _tin(each.rank, default.rank) for each in classes}
    # With `overhead` CAKE counts from the IP header on (cake_calc_overhead()), so the Ethernet header is said.
    options = Cake(bandwidth=link.rate, diffserv=_DIFFSERV4, overhead=link.overhead + ETHERNET_HEADER)
    return _banded(handle, options, {name: handle | tin for name, tin in tins.items()}, by_classid=False)


def _tin(rank: int, default_rank: int) -> int:
    if rank == default_rank:
        return _BEST_EFFORT
    if rank > default_rank:
        return _BULK
    return _VOICE if rank == 0 else _VIDEO


def ets(link: Link, classes: Sequence[LinkClass], major: int, *, classified: bool) -> Queues:
    """Strict bands above the default class, turns in proportion to the shares from it on.

    classified: whether anything chooses bands by class; else the packets' own priorities do.
    """
    default = next(each for each in classes if each.default)
    handle = major << 16
    strict = min(sum(each.rank < default.rank for each in classes), _ETS_BANDS - 1)
    bands: dict[str, int] = {}
    quanta: list[int] = []
    for place, each in enumerate(classes):
        band = min(place, strict - 1) if each.rank < default.rank else min(strict + len(quanta), _ETS_BANDS - 1)
        bands[each.name] = band
        if each.rank >= default.rank and strict + len(quanta) < _ETS_BANDS:
            quanta.append(max(link.packet, int(each.share * 16 * link.packet)))
    first = {each.priority: bands[each.name] for each in reversed(classes)}
    usual = bands[default.name]
    # Priority 0 is what everybody has who asked for nothing.
    by_priority = {} if classified else {priority: first[priority] for priority in first if priority}
    options = Ets(
        bands=strict + len(quanta),
        strict=strict,
        quanta=tuple(quanta),
        priomap=tuple(by_priority.get(priority, usual) for priority in range(_PRIORITIES)),
    )
    return _banded(handle, options, {name: handle | (band + 1) for name, band in bands.items()}, by_classid=True)


def fq(link: Link, classes: Sequence[LinkClass], major: int) -> Queues:
    """Three bands: above the default class, it and what nothing classified, below it. Flows are kept apart in each."""
    del link
    default = next(each for each in classes if each.default)
    priomap = [1] * _PRIORITIES
    for band, priority in enumerate(_FQ_PRIORITIES):
        priomap[priority] = band
    options = Fq(limit=_FQ_PACKETS, flow_limit=_FQ_FLOW_PACKETS, priomap=tuple(priomap))
    handles = {
        each.name: _FQ_PRIORITIES[0 if each.rank < default.rank else 1 if each.default else 2] for each in classes
    }
    return _banded(major << 16, options, handles, by_classid=False)


def _banded(handle: int, options: QdiscOptions, handles: dict[str, int], *, by_classid: bool) -> Queues:
    together: dict[int, list[str]] = {}
    for name, place in handles.items():
        together.setdefault(place, []).append(name)
    shared = [" and ".join(names) for names in together.values() if len(names) > 1]
    return Queues(
        qdiscs=(Qdisc(handle, ROOT, options),),
        handles=handles,
        labels={place: _listed(names) for place, names in together.items() if place >> 16},
        by_classid=by_classid,
        sharing=f"{_listed(shared)} share one queue" if shared else "each class has a queue to itself",
    )


def _listed(names: Sequence[str]) -> str:
    """The first few."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
