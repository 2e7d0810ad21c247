# SPDX-License-Identifier: Apache-2.0
"""Flows known by their addresses before this host translates them: classified by nftables, because tc comes too late.

At tc's egress hook the source of a masqueraded packet is the host's own. Connection tracking still knows the original
addresses (`ct original`, nft(8)), so one chain at postrouting sets the packet's priority to its class, and the
classifier at the hook leaves that alone. The whole table is one text, and its chain's name carries its digest, so
that listing the chains tells whether it is in force.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from qos.tc.policy import Flow, LinkPolicy
from qos.tc.state import handle_text

__all__ = ["TABLE", "chain_name", "replacing", "ruleset"]

TABLE = "inet inferlane"
_CHAIN = "classify_"
_FAMILIES = {4: "ip", 6: "ip6"}


def ruleset(policy: LinkPolicy, handles: Mapping[str, Mapping[str, int]]) -> str:
    """The table for all flows with `before_nat`; "" where there is none.

    handles: by device, the tc class handle of each class by name.
    """
    flows = [each for each in policy.flows if each.before_nat]
    rules = [
        f"        {rule}"
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
        *rules,
        "    }",
    ]
    name = f"{_CHAIN}{hashlib.sha256(chr(10).join(body).encode()).hexdigest()[:12]}"
    return "\n".join([f"table {TABLE} {{", f"    chain {name} {{", *body, "}", ""])


def chain_name(text: str) -> str:
    """The name of a ruleset's chain; "" of no ruleset."""
    found = re.search(rf"chain ({_CHAIN}\w+)", text)
    return found[1] if found else ""


def replacing(text: str) -> str:
    """The transaction, for `nft -f`, that puts a ruleset in place of whatever is there; "": that removes it."""
    return f"add table {TABLE}\ndelete table {TABLE}\n{text}"


def _rules(flow: Flow, device: str, handle: int) -> list[str]:
    """One rule, or one a family where a mark is compared and nothing says which."""
    networks = [ip_network(each) for each in (flow.src, flow.dst) if each is not None]
    versions: list[int | None] = [networks[0].version] if networks else [None]
    if versions == [None] and flow.dscp is not None:
        versions = [4, 6]
    return [_rule(flow, device, handle, version) for version in versions]


def _rule(flow: Flow, device: str, handle: int, version: int | None) -> str:
    parts = [f'oifname "{device}"']
    if version is not None:
        family = _FAMILIES[version]
        parts += [f"ct original {family} saddr {flow.src}"] if flow.src is not None else []
        parts += [f"ct original {family} daddr {flow.dst}"] if flow.dst is not None else []
        parts += [f"{family} dscp {flow.dscp}"] if flow.dscp is not None else []
    if flow.proto is not None:
        parts.append(f"meta l4proto {flow.proto}")
    parts += [f"ct original proto-src {_ports(flow.sport)}"] if flow.sport else []
    parts += [f"ct original proto-dst {_ports(flow.dport)}"] if flow.dport else []
    # accept ends the chain: the first flow that matches decides.
    return " ".join([*parts, f"meta priority set {handle_text(handle)}", "accept"])


def _ports(ranges: Iterable[tuple[int, int]]) -> str:
    return "{ " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges) + " }"
