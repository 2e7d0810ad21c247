# SPDX-License-Identifier: Apache-2.0
"""Which class a packet on a link belongs to: a policy's rules, and the reference that the kernel's copies must equal.

The flows in their order, then the owner of the packet's DSCP, then nothing: what no rule matches stays as it is, and
the root's default class gets it. `program` says the same in BPF, `filters` in flower and u32.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import msgspec

from qos.dscp import dscp_name
from qos.tc.policy import Flow, LinkPolicy

__all__ = [
    "Packet",
    "Ranges",
    "Rule",
    "RuleTable",
    "Verdict",
    "classify_packet",
    "explain_packet",
    "merged",
    "rule_table",
]

Ranges = tuple[tuple[int, int], ...]
"""First and last port of each, sorted, none touching another; empty: any port."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Packets for which all that is given holds get a class."""

    traffic_class: str
    source: str
    """Where the config says so, for people: `flows[2]`, or `the mark EF`."""
    version: int | None = None
    """4 or 6."""
    proto: int | None = None
    src: str | None = None
    dst: str | None = None
    sport: Ranges = ()
    dport: Ranges = ()
    dscp: int | None = None


class RuleTable(msgspec.Struct, frozen=True, kw_only=True):
    """All rules of a link, in order."""

    flows: tuple[Rule, ...]
    marks: tuple[Rule, ...]
    """By DSCP alone, one a code point: their order means nothing."""
    earlier: bool = False
    """Whether some packets are classified before tc sees them (nftables): what has one of our classes keeps it."""

    @property
    def needs_transport(self) -> bool:
        """Whether anything asks for the protocol or the ports."""
        return any(each.proto is not None or each.sport or each.dport for each in self.flows)


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules can ask of an IP packet."""

    version: int
    src: str
    dst: str
    dscp: int
    proto: int | None = None
    """None: it cannot be told, behind headers that are cut off."""
    sport: int | None = None
    """None: no first fragment, or cut off."""
    dport: int | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The class of a packet, and why."""

    traffic_class: str
    because: str


def rule_table(policy: LinkPolicy) -> RuleTable:
    """The rules that a policy makes."""
    return RuleTable(
        flows=tuple(_flow(place, flow) for place, flow in enumerate(policy.flows) if not flow.before_nat),
        marks=tuple(
            Rule(traffic_class=each.name, source=f"the mark {dscp_name(each.dscp)}", dscp=each.dscp)
            for each in policy.classes
            if each.owns_dscp
        ),
        earlier=any(flow.before_nat for flow in policy.flows),
    )


def _flow(place: int, flow: Flow) -> Rule:
    networks = [ip_network(each) for each in (flow.src, flow.dst) if each is not None]
    return Rule(
        traffic_class=flow.traffic_class,
        source=f"flows[{place}]",
        version=networks[0].version if networks else None,
        proto=flow.proto,
        src=flow.src,
        dst=flow.dst,
        sport=merged(flow.sport),
        dport=merged(flow.dport),
        dscp=flow.dscp,
    )


def merged(ports: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges of ports, sorted, none touching another."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ports):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return tuple(merged)


def classify_packet(rules: RuleTable, packet: Packet) -> Rule | None:
    """The first rule that matches; None: the packet is left as it is."""
    return next((rule for rule in (*rules.flows, *rules.marks) if _matches(rule, packet)), None)


def _matches(rule: Rule, packet: Packet) -> bool:
    return (
        rule.version in (None, packet.version)
        and rule.proto in (None, packet.proto)
        and rule.dscp in (None, packet.dscp)
        and _within(rule.src, packet.src)
        and _within(rule.dst, packet.dst)
        and _among(rule.sport, packet.sport)
        and _among(rule.dport, packet.dport)
    )


def _within(network: str | None, address: str) -> bool:
    return network is None or ip_address(address) in ip_network(network)


def _among(ranges: Ranges, port: int | None) -> bool:
    return not ranges or (port is not None and any(first <= port <= last for first, last in ranges))


def explain_packet(policy: LinkPolicy, packet: Packet) -> Verdict:
    """The class that a packet gets on every shaped link, and why."""
    # Those before NAT are classified first, whatever their place in the list (RuleTable.earlier).
    early = (_flow(place, flow) for place, flow in enumerate(policy.flows) if flow.before_nat)
    found = next((rule for rule in early if _matches(rule, packet)), None)
    found = found or classify_packet(rule_table(policy), packet)
    if found is None:
        mark = dscp_name(packet.dscp)
        return Verdict(traffic_class=policy.default.name, because=f"no flow matches and no class owns the mark {mark}")
    return Verdict(traffic_class=found.traffic_class, because=found.source)
