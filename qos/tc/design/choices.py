# SPDX-License-Identifier: Apache-2.0
"""Which engine and which classifier a device gets: what was asked, else the next best that the kernel has."""

from __future__ import annotations

from typing import Literal

import msgspec

from qos.tc.capabilities import Capabilities, LinkFacts
from qos.tc.design.engines import LOSSES
from qos.tc.policy import Interface
from qos.tc.settings import OVERHEADS
from qos.units import format_rate

__all__ = ["Choice", "Note", "Severity", "chosen_classifier", "chosen_engine", "ingress_obstacle", "link_warnings"]

Severity = Literal["warning", "degraded"]
MARKS_ONLY_FROM = 10 * 10**9
"""Bits per second, on a device with several queues: HTB has one lock for all of them."""
_WIRE = OVERHEADS["ethernet"]


class Note(msgspec.Struct, frozen=True):
    """What somebody who applies a policy should know."""

    severity: Severity
    """`degraded`: a key of the config is not kept."""
    where: str
    """`interfaces[0] eth0`."""
    text: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, and what is to be said about it."""

    name: str
    leaf: str = "bfifo"
    """Of HTB's classes."""
    fell_back: bool = False
    """Whether it stands in for another: what is lost is among the notes then."""
    notes: tuple[tuple[Severity, str], ...] = ()


def chosen_engine(interface: Interface, facts: LinkFacts, capabilities: Capabilities) -> Choice:
    """The engine that was asked for, or the next best."""
    asked = interface.engine
    if asked == "marks":
        return Choice(name="marks")
    if asked == "auto" and facts.tx_queues > 1 and interface.egress >= MARKS_ONLY_FROM:
        text = (
            f"engine auto: marks only, because HTB has one lock for all {facts.tx_queues} queues and costs more than "
            f"it gives at {format_rate(interface.egress)}; {LOSSES['marks']}; say engine: htb to have them"
        )
        return Choice(name="marks", notes=(("warning", text),))
    wanted = "htb" if asked == "auto" else asked
    said = []
    for engine in dict.fromkeys((wanted, "htb", "ets", "fq", "marks")):
        obstacle = _obstacle(engine, capabilities)
        if obstacle is not None:
            said.append(obstacle)
            continue
        leaf, notes = _leaf(engine, capabilities)
        if said:
            notes = (("degraded", f"{'; '.join(said)}; using {engine}: {_instead(engine)}"), *notes)
        return Choice(name=engine, leaf=leaf, fell_back=bool(said), notes=notes)
    raise AssertionError  # marks need nothing


def _instead(engine: str) -> str:
    if engine == "htb":
        return "shares and ceilings hold, without what the other engine does of its own"
    return LOSSES[engine].replace(", and {sharing}", "").replace(", {sharing}", "")


def _obstacle(engine: str, capabilities: Capabilities) -> str | None:
    if engine == "marks":
        return None
    if engine == "fq" and capabilities.lacks("fq") is None and not capabilities.fq_bands:
        return f"fq: no bands by packet priority in this kernel ({capabilities.kernel}); Linux 6.7 has them"
    return capabilities.lacks(engine)


def _leaf(engine: str, capabilities: Capabilities) -> tuple[str, tuple[tuple[Severity, str], ...]]:
    lacks = capabilities.lacks("fq_codel")
    if engine != "htb" or lacks is None:
        return "fq_codel", ()
    text = f"{lacks}; using bfifo: classes and rates hold, but flows of one class share one queue and none is cut short"
    return "bfifo", (("warning", text),)


def chosen_classifier(engine: str, capabilities: Capabilities, *, ingress: bool) -> tuple[str, str]:
    """`bpf`, `flower`, `u32` or `none`, and what is lost by it.

    ingress: whether somebody's `ingress` qdisc is on the device, which excludes clsact.
    """
    clsact = "clsact: an ingress qdisc, not ours, is in its place" if ingress else capabilities.lacks("clsact")
    said = "; ".join(filter(None, (capabilities.lacks("bpf"), clsact)))
    if not said:
        return "bpf", ""
    if engine == "cake":
        return (
            "none",
            f"{said}; CAKE reads the marks by its own table: classes get its tins, not ours, flows are not seen",
        )
    if engine == "fq":
        return "none", f"{said}; packets keep the priorities of their senders: marks and flows of others are not seen"
    for kind in ("flower", "u32"):
        lacks = capabilities.lacks(kind)
        if lacks is None:
            return kind, f"{said}; using {kind}: {_SEEN[kind]}"
        said = f"{said}; {lacks}"
    return "none", f"{said}; nothing brings packets into classes: all are in the default one"


_SEEN = {
    "flower": "packets with a VLAN tag are not seen, nor are the ports of fragments",
    "u32": "packets with a VLAN tag are not seen, nor are ports behind IP options and extension headers",
}


def ingress_obstacle(engine: str, capabilities: Capabilities) -> str:
    """Why what comes in cannot be queued; empty where it can."""
    if engine not in ("htb", "cake"):
        return f"{engine} keeps no rate, and without one no queue forms on an IFB"
    needed = [capabilities.lacks(kind) for kind in ("ifb", "mirred", "clsact")]
    if capabilities.lacks("matchall") is not None:
        needed.append(capabilities.lacks("u32"))
    return "; ".join(filter(None, needed))


def link_warnings(interface: Interface, facts: LinkFacts) -> list[str]:
    """What is odd about a device, whatever is done to it."""
    found = []
    if not facts.up:
        found.append(f"it is down; what is made holds when it comes up: ip link set {facts.name} up")
    if facts.managed_by:
        found.append(
            f"{facts.managed_by} manages it, and may remove what is made here; keep qdiscs out of its settings"
        )
    if facts.speed is None or interface.engine == "marks":
        return found
    packet = facts.mtu + 14
    wire = packet + max(0, _WIRE - interface.overhead)
    most = int(facts.speed * packet / wire)
    if interface.egress > most:
        remedy = "" if interface.overhead >= _WIRE else "overhead: ethernet and "
        found.append(
            f"egress {format_rate(interface.egress)} is more than its {format_rate(facts.speed)} can carry, as "
            f"the wire adds to each packet: the queue would form below, without classes; say {remedy}egress: "
            f"{format_rate((facts.speed if remedy else most) // 10**6 * 10**6)}"
        )
    return found
