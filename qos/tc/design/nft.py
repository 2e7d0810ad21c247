# SPDX-License-Identifier: Apache-2.0
"""Flows known by their addresses before this host translates them: classified by nftables, because tc comes too late.

At tc's egress hook the source of a masqueraded packet is the host's own. A chain at postrouting comes before that, and
connection tracking knows the destination that a packet came with (nft(8)). So one chain sets the packet's priority to
its class, and the classifier at the hook leaves that alone. The whole table is one text. Its chain's name carries its
digest, and each rule's comment its number, so that listing both tells whether all of it is in force.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from qos.tc.design.choices import Severity
from qos.tc.design.classifier import merged
from qos.tc.policy import Flow, Interface, LinkPolicy
from qos.tc.state import FOREIGN_TABLE, OUR_CHAIN, OUR_TABLE, handle_text

__all__ = ["chain_name", "early_flows", "early_handles", "ingress_loss", "obstacle", "replacing", "ruleset"]

_FAMILIES = {4: "ip", 6: "ip6"}
_DIRECTIONS: list[str | None] = ["original", "reply"]


def ruleset(policy: LinkPolicy, handles: Mapping[str, Mapping[str, int]]) -> str:
    """The table for all flows with `before_nat`; "" where there is none.

    handles: by device, the packet priority of each class by name.
    """
    flows = [each for each in policy.flows if each.before_nat]
    rules = [
        rule
        for device, classes in sorted(handles.items())
        for flow in flows
        if flow.traffic_class in classes
        for rule in _rules(flow, device, classes[flow.traffic_class])
    ]
    if not rules:
        return ""
    body = [
        # Mangle comes before source NAT, and its priority survives: nothing after it reads the TOS again.
        "        type filter hook postrouting priority mangle; policy accept;",
        *(f'        {rule} comment "{number} of {len(rules)}"' for number, rule in enumerate(rules, 1)),
        "    }",
    ]
    name = f"{OUR_CHAIN}{hashlib.sha256(chr(10).join(body).encode()).hexdigest()[:12]}"
    return "\n".join([f"table {OUR_TABLE} {{", f"    chain {name} {{", *body, "}", ""])


def chain_name(text: str) -> str:
    """The name of a ruleset's chain; "" of no ruleset."""
    found = re.search(rf"chain ({OUR_CHAIN}\w+)", text)
    return found[1] if found else ""


def replacing(text: str) -> str:
    """The transaction, for `nft -f`, that puts a ruleset in place of whatever is there; "": that removes it."""
    # delete fails where there is none, and nft(8) has `destroy` only from 1.0.7 on.
    return f"add table {OUR_TABLE}\ndelete table {OUR_TABLE}\n{text}"


def early_flows(policy: LinkPolicy) -> str:
    """Where the config has flows with `before_nat`, for people; "": nowhere."""
    return ", ".join(f"flows[{place}]" for place, flow in enumerate(policy.flows) if flow.before_nat)


def early_handles(root: int, handles: Mapping[str, int]) -> dict[str, int]:
    """The priorities that the classifier at the hook leaves alone: those with the root's major.

    fq looks at the low four bits only (fq_classify() in net/sched/sch_fq.c).
    """
    return {name: handle if handle >> 16 else root | handle for name, handle in handles.items()}


def obstacle(interface: Interface, engine: str, *, lacks: str, table: str) -> tuple[Severity, str] | None:
    """Why such flows are not seen on a device. lacks: `Capabilities.nftables`; table: the observed one."""
    if engine == "marks":
        return "warning", "engine marks makes no queues to put them into"
    if lacks:
        return "degraded", lacks
    if table == FOREIGN_TABLE:
        return "degraded", f"the nftables table {OUR_TABLE} is not ours; rename it, or: nft delete table {OUR_TABLE}"
    if re.search(r'["\\*]', interface.name):
        return "degraded", 'nftables takes no device whose name has " or \\ or * in it; rename it: ip link set'
    return None


def ingress_loss(flows: str) -> str:
    """What is not done for what comes in."""
    return f"ingress: packets come to the IFB before this host translates them back, so {flows} are not seen there"


def _rules(flow: Flow, device: str, handle: int) -> list[str]:
    """One rule, or one a family where a mark is compared and nothing says which, or one a direction."""
    networks = [ip_network(each) for each in (flow.src, flow.dst) if each is not None]
    versions: list[int | None] = [networks[0].version] if networks else [None]
    if versions == [None] and flow.dscp is not None:
        versions = [4, 6]
    # Of an answer, what it came with is in the connection's reply, and what it was asked with in its original.
    directions = _DIRECTIONS if flow.dst is not None or flow.dport else [None]
    return [_rule(flow, device, handle, version, direction) for version in versions for direction in directions]


def _rule(flow: Flow, device: str, handle: int, version: int | None, direction: str | None) -> str:
    parts = [f'oifname "{device}"']
    family = _FAMILIES[version or 4]
    # At this hook the packet still has the source that it came with: source NAT comes later (priority srcnat).
    parts += [f"{family} saddr {flow.src}"] if flow.src is not None else []
    parts += [f"{family} dscp {flow.dscp}"] if flow.dscp is not None else []
    parts += [f"meta l4proto {flow.proto}"] if flow.proto is not None else []
    parts += [f"th sport {_ports(flow.sport)}"] if flow.sport else []
    # Its destination is translated already (prerouting, priority dstnat).
    parts += [f"ct direction {direction}"] if direction is not None else []
    parts += [f"ct {direction} {family} daddr {flow.dst}"] if flow.dst is not None else []
    parts += [f"ct {direction} proto-dst {_ports(flow.dport)}"] if flow.dport else []
    # accept ends the chain: the first flow that matches decides.
    return " ".join([*parts, f"meta priority set {handle_text(handle)}", "accept"])


def _ports(ranges: Iterable[tuple[int, int]]) -> str:
    # Merged, because nft refuses ranges that overlap in one set.
    return "{ " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in merged(ranges)) + " }"
