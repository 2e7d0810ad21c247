# SPDX-License-Identifier: Apache-2.0
"""What passes each class of each link, beside what it was promised: the rows of `inferlane qos status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from proxy.commands.qos_report import place
from qos.dscp import dscp_name
from qos.tc.change.scope import Target
from qos.tc.kernel.statistics import Counters, grown
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.commands import describe
from qos.tc.state import HtbClass, LinkState, handle_text, is_our_qdisc
from qos.units import format_rate

__all__ = ["ClassRow", "Reading", "link_tables", "rows", "status_document"]

_MINOR = 0xFFFF
Reading = Mapping[str, Mapping[int, Counters]]
"""Counters by device and handle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class on one link in one direction. Rates in bits per second, counts since its queue was made."""

    netns: str | None
    interface: str
    direction: str
    traffic_class: str
    mark: str
    handle: str
    rate: int | None
    """Guaranteed."""
    ceiling: int | None
    sent: int
    """Bits per second between two readings."""
    packets: int
    bytes: int
    drops: int
    backlog_packets: int
    backlog_bytes: int
    borrows: int


def rows(target: Target, policy: LinkPolicy, readings: Sequence[Reading], over_s: float) -> list[ClassRow]:
    """All classes of one namespace, and each link as a whole. readings: two of them, that long apart."""
    marks = {each.name: dscp_name(each.dscp) for each in policy.classes}
    found = []
    for link in target.desired.links:
        before, after = (each.get(link.name, {}) for each in readings)
        promised = {each.handle: each.options for each in link.classes if isinstance(each.options, HtbClass)}
        labelled = {handle: name for (device, handle), name in target.labels.items() if device == link.name}
        roots = {each.handle: "all" for each in link.qdiscs if is_our_qdisc(each)}
        for handle, name in {**labelled, **roots}.items():
            # The queue in a class is told with it; tins and flows of a kind without classes are told by nobody.
            if handle in roots or (handle & _MINOR and (handle in promised or handle in after)):
                options = promised.get(handle)
                found.append(
                    ClassRow(
                        netns=target.netns,
                        interface=link.ifb_for or link.name,
                        direction="egress" if link.ifb_for is None else "ingress",
                        traffic_class=name,
                        mark=marks.get(name, ""),
                        handle=handle_text(handle),
                        rate=None if options is None else options.rate * 8,
                        ceiling=None if options is None else options.ceil * 8,
                        **_counted(handle, before, after, over_s),
                    )
                )
        _sum_drops(found, link)
    return found


def _sum_drops(found: list[ClassRow], link: LinkState) -> None:
    """A root does not count what its leaves throw away after cutting a train."""
    interface = link.ifb_for or link.name
    direction = "egress" if link.ifb_for is None else "ingress"
    here = [each for each in found if (each.interface, each.direction) == (interface, direction)]
    for each in here:
        if each.traffic_class == "all":
            total = max(each.drops, sum(other.drops for other in here if other is not each))
            found[found.index(each)] = replace(each, drops=total)


def _counted(
    handle: int, before: Mapping[int, Counters], after: Mapping[int, Counters], over_s: float
) -> dict[str, int]:
    nothing = Counters()
    now = after.get(handle, nothing)
    # HTB counts what a leaf throws away, and what waits in it, at the leaf.
    leaf = after.get((handle & _MINOR) << 16, nothing) if handle & _MINOR else nothing
    return {
        "sent": round(grown(before.get(handle, nothing), now).bytes * 8 / over_s),
        "packets": now.packets,
        "bytes": now.bytes,
        "drops": max(now.drops, leaf.drops),
        "backlog_packets": max(now.backlog_packets, leaf.backlog_packets),
        "backlog_bytes": max(now.backlog_bytes, leaf.backlog_bytes),
        "borrows": now.borrows,
    }


def link_tables(target: Target, found: Sequence[ClassRow]) -> Iterable[Table | str]:
    """For people: one table a link and direction, and what differs from what was promised."""
    for interface, direction in dict.fromkeys((each.interface, each.direction) for each in found):
        table = Table(title=f"{interface} {direction}, {place(target.netns)}", title_justify="left")
        for column in ("class", "mark", "tc class"):
            table.add_column(column)
        for column in ("guaranteed", "ceiling", "now", "packets", "drops", "backlog", "borrows"):
            table.add_column(column, justify="right")
        for each in found:
            if (each.interface, each.direction) == (interface, direction):
                table.add_row(*_cells(each))
        yield table
    yield from drift(target)


def drift(target: Target) -> list[str]:
    """What the kernel has otherwise than promised."""
    if not target.steps:
        return [f"{place(target.netns)}: all is as promised"]
    lines = [f"{place(target.netns)}: not as promised; `inferlane qos apply` would:"]
    return ["\n".join([*lines, *(f"  {describe(step, target.labels)}" for step in target.steps)])]


def status_document(targets: Sequence[Target], found: Sequence[ClassRow]) -> dict[str, Any]:
    """For programs."""
    return {
        "classes": [asdict(each) for each in found],
        "drift": [
            {"netns": each.netns, "steps": [describe(step, each.labels) for step in each.steps]} for each in targets
        ],
    }


def _cells(row: ClassRow) -> list[str]:
    return [
        row.traffic_class,
        row.mark,
        row.handle,
        _rate(row.rate),
        _rate(row.ceiling),
        _rate(row.sent),
        str(row.packets),
        str(row.drops),
        f"{row.backlog_packets} ({row.backlog_bytes} B)" if row.backlog_packets else "0",
        str(row.borrows),
    ]


def _rate(bits_per_s: int | None) -> str:
    if bits_per_s is None:
        return "-"
    return format_rate(float(f"{bits_per_s:.3g}")) if bits_per_s else "0"
