# SPDX-License-Identifier: Apache-2.0
"""What classes, interfaces and flows must not say about one another, and what is worth a warning.

Faults are found in the plain values, so that they are told beside all others. Warnings need a config without faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network
from itertools import chain

from proxy.config.errors import Fault, key_path, unknown_name
from proxy.config.positions import Path
from proxy.config.settings import Config
from proxy.config.tables import Table, names, parsed, tables
from qos.dscp import dscp_name, parse_dscp
from qos.settings import BUILT_IN_CLASSES
from qos.tc.design.compile import ifb_name
from qos.units import format_rate, format_share, parse_rate, parse_share

__all__ = ["link_faults", "link_warnings"]

LEAST_RATE = 8_000
"""Bits per second of a class: at less, one packet takes more than a second."""
MOST_CLASSES = 4095
"""A class's number on a link is 12 bits of its tc class's handle (`qos.tc.design.engines.minor_of`)."""
MOST_RANGES = 128
"""Ports and ranges of one end of one flow: each is two BPF instructions."""
_NOT_OF_LINKS = {"police"}
"""Keys of classes.link that mean something without a tc class."""


def link_faults(config: Table) -> Iterator[Fault]:
    """Everything that is wrong about links."""
    return chain.from_iterable(check(config) for check in _CHECKS)


def _reached(config: Table) -> list[tuple[Path, Table, bool]]:
    """Each class with whether packets on a link can be told to be its; nothing where that cannot be known."""
    items = config.get("classes")
    found = list(tables(config, "classes"))
    if not isinstance(items, tuple) or len(found) != len(items):
        return []
    marks = [parsed(parse_dscp, table.get("dscp")) for _, table in found]
    if None in marks:
        return []
    named = [flow.get("class") for _, flow in tables(config, "flows")]
    default = next((place for place, (_, table) in enumerate(found) if table.get("default") is True), 0)
    return [
        (path, table, place == default or marks.index(marks[place]) == place or table.get("name") in named)
        for place, (path, table) in enumerate(found)
    ]


def _link(table: Table) -> Table:
    link = table.get("link")
    return link if isinstance(link, dict) else {}


def _promised(config: Table) -> list[tuple[Path, Table, float | None]]:
    """The classes that have a part of each link, with the share that they say; nothing where one cannot be read."""
    found = [(path, table, _link(table).get("share")) for path, table, reached in _reached(config) if reached]
    shares = [(path, table, None if share is None else parsed(parse_share, share)) for path, table, share in found]
    unread = any(said is not None and read is None for (*_, said), (*_, read) in zip(found, shares, strict=True))
    return [] if unread else shares


def _shares(config: Table) -> Iterator[Fault]:
    classes = _promised(config)
    said = [(path, share) for path, _, share in classes if share is not None]
    silent = [str(table.get("name")) for _, table, share in classes if share is None]
    total = 0.0
    for path, share in said:
        total += share
        if total > 1 + 1e-9:
            yield Fault((*path, "link", "share"), f"the shares to here add up to {format_share(total)}; at most 100%")
            return
    if silent and said and total > 1 - 1e-6:
        left_out = ", ".join(silent[:8])
        yield Fault(
            (*said[-1][0], "link", "share"),
            f"the shares add up to 100%, and nothing is left for {left_out}, which say none; lower one of them",
        )


def _all_shares(config: Table) -> list[tuple[Path, Table, float]]:
    """As the policy will see them: the silent ones part what is left (qos.tc.policy)."""
    classes = _promised(config)
    silent = [share for *_, share in classes].count(None)
    left = 1 - sum(share for *_, share in classes if share is not None)
    if left < -1e-9 or (silent and left <= 1e-6):
        return []
    return [(path, table, left / silent if share is None else share) for path, table, share in classes]


def _ceilings(config: Table) -> Iterator[Fault]:
    for path, table, share in _all_shares(config):
        ceiling = parsed(parse_share, _link(table).get("ceiling"))
        if ceiling is not None and ceiling < share - 1e-9:
            why = "is guaranteed" if "share" in _link(table) else "is what the others leave it, as it says no share"
            yield Fault(
                (*path, "link", "ceiling"), f"less than its share: {format_share(share)} {why}; at least that much"
            )


def _rates(config: Table) -> Iterator[Fault]:
    built_in = [(each.name, 1 / len(BUILT_IN_CLASSES)) for each in BUILT_IN_CLASSES]
    classes = [(str(table.get("name")), share) for _, table, share in _all_shares(config)]
    if "classes" not in config:
        classes = built_in
    if not classes:
        return
    name, share = min(classes, key=lambda each: each[1])
    for path, interface in tables(config, "interfaces"):
        for key in ("egress", "ingress"):
            rate = parsed(parse_rate, interface.get(key))
            if rate is not None and rate * share < LEAST_RATE:
                yield Fault(
                    (*path, key),
                    f"{format_share(share)} of it is {format_rate(rate * share)} for {name}; a class needs at least "
                    f"{format_rate(LEAST_RATE)}",
                )


def _unreached(config: Table) -> Iterator[Fault]:
    """A promise on the link for a class whose packets look like another's."""
    known = _reached(config)
    for path, table, reached in known:
        if reached or not _link(table).keys() - _NOT_OF_LINKS:
            continue
        mark = parse_dscp(table["dscp"])
        owner = next(str(other.get("name")) for _, other, _ in known if parsed(parse_dscp, other.get("dscp")) == mark)
        yield Fault(
            (*path, "link"),
            f"no packet on a link can be told to be of this class: the mark {dscp_name(mark)} is {owner}'s, which is "
            "served before it, and no flow names it; give it another dscp, or remove share, ceiling and queue",
            at_key=True,
        )


def _interfaces(config: Table) -> Iterator[Fault]:
    first: dict[tuple[str | None, str], Path] = {}
    shaped = [(path, table) for path, table in tables(config, "interfaces") if isinstance(table.get("name"), str)]
    for path, table in shaped:
        key = _namespace(table), table["name"]
        if key in first:
            yield Fault((*path, "name"), f"{key_path(first[key])} is about this interface already; once is enough")
        first.setdefault(key, path)
    taken: dict[tuple[str | None, str], str] = {}
    for path, table in shaped:
        netns, name = _namespace(table), ifb_name(table["name"])
        if "ingress" not in table or first[netns, table["name"]] != path:
            continue
        owner = taken.setdefault((netns, name), table["name"])
        if owner != table["name"] or (netns, name) in first:
            other = key_path(first[netns, owner]) if owner != table["name"] else key_path(first[netns, name])
            yield Fault(
                (*path, "ingress"),
                f"it would be shaped on {name}, a name that {other} takes, too; rename one",
                at_key=True,
            )


def _namespace(table: Table) -> str | None:
    netns = table.get("netns")
    return netns if isinstance(netns, str) else None


def _too_many(config: Table) -> Iterator[Fault]:
    count = len(list(tables(config, "classes")))
    if count > MOST_CLASSES and "interfaces" in config:
        yield Fault(("classes",), f"{count} classes; at most {MOST_CLASSES} where interfaces are shaped")


def _flows(config: Table) -> Iterator[Fault]:
    classes = names(config, "classes")
    for path, flow in tables(config, "flows"):
        name = flow.get("class")
        if isinstance(name, str) and classes and name not in classes:
            yield Fault((*path, "class"), unknown_name("class", name, classes))
        if not flow.keys() - {"class", "before_nat"}:
            remedy = "give proto, src, dst, sport, dport or dscp"
            yield Fault(path, f"no condition, so it is all traffic there is; {remedy}")
        yield from _ports(path, flow)
        yield from _addresses(path, flow)


def _ports(path: Path, flow: Table) -> Iterator[Fault]:
    for key in ("sport", "dport"):
        ports = flow.get(key)
        if ports is not None and "proto" not in flow:
            yield Fault((*path, key), "ports of which protocol? give proto: udp or proto: tcp", at_key=True)
        if isinstance(ports, tuple) and len(ports) > MOST_RANGES:
            yield Fault(
                (*path, key), f"{len(ports)} ports and ranges; at most {MOST_RANGES}, write a flow for the others"
            )


def _addresses(path: Path, flow: Table) -> Iterator[Fault]:
    src, dst = (parsed(ip_network, flow.get(key)) for key in ("src", "dst"))
    if src is not None and dst is not None and src.version != dst.version:
        yield Fault((*path, "dst"), f"IPv{dst.version}, and src is IPv{src.version}; no packet is both")
    if flow.get("before_nat") is True and not flow.keys() & {"src", "dst"}:
        yield Fault(
            (*path, "before_nat"), "without effect: only addresses are translated; give src or dst", at_key=True
        )


_CHECKS: tuple[Callable[[Table], Iterator[Fault]], ...] = (
    _shares,
    _ceilings,
    _rates,
    _unreached,
    _interfaces,
    _too_many,
    _flows,
)


def link_warnings(config: Config) -> Iterator[Fault]:
    """What works as written and may not be what was meant.

    A class above the default one borrows before all below it, and waits for nobody only as long as it stays within its
    share (measured: a probe below its class's rate never waits). No client has a rate limit, so what a listener may
    carry of such a class is bounded by its ceiling alone. Where nobody wrote that, and it is more than the share, both
    numbers are told, for the slowest link. RFC 3246 section 2.9 asks the same of EF: police it to what is configured.
    """
    if not config.interfaces:
        return
    place, slowest = min(enumerate(config.interfaces), key=lambda each: each[1].egress)
    promised = config.link_policy()
    written = {
        each.name for each in config.classes if each.link is not None and "ceiling" in each.link.model_fields_set
    }
    ranks = {each.name: each.rank for each in promised.classes}
    highest = {each.name: ranks[each.max_class or promised.default.name] for each in config.listeners}
    for each in promised.classes:
        doors = [name for name, rank in highest.items() if rank <= each.rank]
        if each.rank >= promised.default.rank or not doors or not 0 < each.share < each.ceiling - 1e-9:
            continue
        if each.name in written:
            continue
        guaranteed, most = (format_rate(slowest.egress * part) for part in (each.share, each.ceiling))
        yield Fault(
            ("interfaces", place, "egress"),
            f"{each.name} is guaranteed {guaranteed} of it ({format_share(each.share)}) and may send {most} "
            f"(ceiling {format_share(each.ceiling)}): nothing limits what {_listed(doors)} may carry of it, and above "
            "its share it takes what lower classes would borrow; give it the share it needs and write its ceiling: the "
            "same number holds it there, and bursts then wait for that rate; 100% says that this is meant",
        )


def _listed(doors: list[str]) -> str:
    shown = ", ".join(doors[:8])
    return f"listener {shown}" if len(doors) == 1 else f"listeners {shown}"
