# SPDX-License-Identifier: Apache-2.0
"""The classifier's rules as flower or u32 filters on our root, for kernels and devices without cls_bpf at clsact.

One preference holds filters of one kind and one protocol, and inside it the order is the kernel's: flower goes by mask,
u32 by a handle that the kernel chooses. So neighbours of one class share a preference, all marks share one (no packet
has two), and the order of preferences is the order of the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_network
from itertools import groupby, product

import msgspec

from qos.tc.design.classifier import Ranges, Rule, RuleTable
from qos.tc.state import U32, Filter, FilterOptions, Flower

__all__ = ["MOST_FILTERS", "FilterSet", "flower_filters", "port_masks", "u32_filters"]

MOST_FILTERS = 4000
"""On one device: of u32, a preference takes 4,095 and a device 2,047 preferences (net/sched/cls_u32.c)."""
_PREFERENCES = 2000
_PROTOCOLS = {4: 0x0800, 6: 0x86DD}
_ANY = ((0, 65535),)

Key = tuple[int, int, int]


class FilterSet(msgspec.Struct, frozen=True):
    """The filters, and the rules that did not fit."""

    filters: tuple[Filter, ...]
    left_out: tuple[str, ...]
    """Their sources."""


def flower_filters(rules: RuleTable, handles: Mapping[str, int], parent: int) -> FilterSet:
    """As tc-flower(8). handles: the tc class of each traffic class."""
    return _filters(rules, handles, parent, _flower)


def u32_filters(rules: RuleTable, handles: Mapping[str, int], parent: int) -> FilterSet:
    """As tc-u32(8), which knows neither options nor extension headers: ports behind them are not seen."""
    return _filters(rules, handles, parent, _u32)


Translate = Callable[[Rule, int, int], Iterator[FilterOptions]]


def _filters(rules: RuleTable, handles: Mapping[str, int], parent: int, translate: Translate) -> FilterSet:
    groups = [list(each) for _, each in groupby(rules.flows, key=lambda rule: rule.traffic_class)]
    groups.append(list(rules.marks))
    # The marks are the contract of all classes: room is kept for them.
    room = MOST_FILTERS - 2 * len(rules.marks)
    filters: list[Filter] = []
    left_out: list[str] = []
    for place, group in enumerate(groups):
        last = place == len(groups) - 1
        for version, protocol in _PROTOCOLS.items():
            preference = 1 + 2 * min(place, _PREFERENCES // 2) + (version == 6)
            seen: set[FilterOptions] = set()
            for rule in group:
                if rule.version not in (None, version):
                    continue
                options = [] if not last and place >= _PREFERENCES // 2 else _bounded(rule, version, handles, translate)
                new = [each for each in dict.fromkeys(options) if each not in seen]
                if not options or (not last and len(filters) + len(new) > room):
                    left_out.append(rule.source)
                    continue
                seen.update(new)
                filters += (Filter(parent, preference, protocol, 0, each) for each in new)
    return FilterSet(tuple(filters), tuple(dict.fromkeys(left_out)))


def _bounded(rule: Rule, version: int, handles: Mapping[str, int], translate: Translate) -> list[FilterOptions]:
    """All filters of one rule; none where they are too many."""
    options: list[FilterOptions] = []
    for each in translate(rule, version, handles[rule.traffic_class]):
        options.append(each)
        if len(options) > MOST_FILTERS:
            return []
    return options


def _flower(rule: Rule, version: int, classid: int) -> Iterator[Flower]:
    del version
    for sport, dport in product(rule.sport or (None,), rule.dport or (None,)):
        yield Flower(
            classid=classid,
            dscp=rule.dscp,
            ip_proto=rule.proto,
            src=_compared(rule.src),
            dst=_compared(rule.dst),
            sport=sport,
            dport=dport,
        )


def _compared(network: str | None) -> str:
    """Of a network that holds every address the kernel keeps nothing, and tells nothing."""
    return "" if network is None or network.endswith("/0") else network


def _u32(rule: Rule, version: int, classid: int) -> Iterator[U32]:
    keys = [*_head(rule, version)]
    if not rule.sport and not rule.dport:
        yield U32(tuple(keys) or ((0, 0, 0),), classid)
        return
    if version == 4:
        # Ports are where we look only behind a header without options, and in first fragments (RFC 791 section 3.1).
        keys += [(0, 0x05000000, 0x0F000000), (4, 0, 0x00001FFF)]
    place = 20 if version == 4 else 40
    for (sport, sport_mask), (dport, dport_mask) in product(_masks(rule.sport), _masks(rule.dport)):
        yield U32((*keys, (place, sport << 16 | dport, sport_mask << 16 | dport_mask)), classid)


def _head(rule: Rule, version: int) -> Iterator[Key]:
    """Words of the IP header: RFC 791 section 3.1, RFC 8200 section 3."""
    if rule.dscp is not None:
        shift = 18 if version == 4 else 22
        yield 0, rule.dscp << shift, 0x3F << shift
    if rule.proto is not None:
        offset, shift = (8, 16) if version == 4 else (4, 8)
        yield offset, rule.proto << shift, 0xFF << shift
    for network, offset in ((rule.src, 12 if version == 4 else 8), (rule.dst, 16 if version == 4 else 24)):
        if network is not None:
            yield from _network(network, offset)


def _network(text: str, offset: int) -> Iterator[Key]:
    network = ip_network(text)
    address, mask = network.network_address.packed, network.netmask.packed
    for at in range(0, len(mask), 4):
        bits = int.from_bytes(mask[at : at + 4], "big")
        if bits:
            yield offset + at, int.from_bytes(address[at : at + 4], "big"), bits


def _masks(ranges: Ranges) -> list[tuple[int, int]]:
    return list(port_masks(ranges or _ANY))


def port_masks(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges as values with masks, as few as possible: 5010-5020 is five of them."""
    for first, last in ranges:
        at = first
        while at <= last:
            size = at & -at or 65536
            while at + size - 1 > last:
                size >>= 1
            yield at, 0xFFFF & ~(size - 1)
            at += size
