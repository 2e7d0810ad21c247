# SPDX-License-Identifier: Apache-2.0
"""What a described packet would get on the config's links, and why: by the reference classifier, without a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from msgspec.structs import replace

from proxy.config.settings import Config
from qos.dscp import dscp_name, parse_dscp
from qos.schema import did_you_mean, shown
from qos.tc.capabilities import CONFIG_NAMES, Capabilities, LinkFacts
from qos.tc.design.classifier import Packet, explain_packet
from qos.tc.design.compile import CannotKeepError, Compiled, compile_policy
from qos.tc.policy import Interface, LinkPolicy
from qos.tc.state import HtbClass, LinkState, NetworkState, handle_text
from qos.units import format_rate

__all__ = ["ExplainedPacket", "PacketExplanation", "TcPlace", "explain_described_packet"]

_PROTOCOLS = {"tcp": 6, "udp": 17}
_IPV4, _IPV6 = 4, 6
_UNSAID = {_IPV4: ("192.0.2.1", "198.51.100.1"), _IPV6: ("2001:db8::1", "2001:db8::2")}  # RFC 5737, RFC 3849
# A kernel with everything: which class a packet gets depends on none of it.
_QDISCS = ("htb", "cake", "ets", "fq", "fq_codel", "bfifo")
_ACTIONS = ("mirred", "skbedit")
_ASSUMED = Capabilities(
    kernel="any",
    qdiscs=dict.fromkeys(_QDISCS, ""),
    classifiers=dict.fromkeys(CONFIG_NAMES.keys() - {*_QDISCS, *_ACTIONS, "ifb", "clsact"}, ""),
    actions=dict.fromkeys(_ACTIONS, ""),
    ifb="",
    clsact="",
    per_packet_priority=True,
    fq_bands=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedPacket:
    """A packet as an admin describes it."""

    interface: str | None = None
    """None: all of the config's."""
    src: str | None = None
    """None, of both: an address for documentation, which no flow should name."""
    dst: str | None = None
    proto: str | None = None
    sport: int | None = None
    dport: int | None = None
    dscp: str = "DF"


@dataclass(frozen=True, slots=True, kw_only=True)
class TcPlace:
    """Its queue on one link in one direction."""

    interface: str
    netns: str | None
    direction: str
    tc_class: str | None
    """As tc writes it, `51a:16`; None: the engine has no classes of its own."""
    rate: int | None
    """Guaranteed, bits per second."""
    ceiling: int | None

    def as_text(self) -> str:
        """For people."""
        where = f"{self.interface} {self.direction}" + (f" in namespace {self.netns}" if self.netns else "")
        if self.tc_class is None:
            return f"{where}: no tc class of its own"
        if self.rate is None or self.ceiling is None:
            return f"{where}: {self.tc_class}"
        return f"{where}: {self.tc_class}, guaranteed {format_rate(self.rate)}, at most {format_rate(self.ceiling)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketExplanation:
    """What it would get, if the config is applied."""

    packet: str
    traffic_class: str
    why: str
    mark: str
    """The DSCP that it keeps."""
    places: tuple[TcPlace, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def as_text(self) -> str:
        """For people: a line for each thing."""
        lines = [
            f"{'packet':<10} {self.packet}",
            f"{'class':<10} {self.traffic_class} ({self.why})",
            f"{'mark':<10} {self.mark}, as it came: traffic control changes no mark",
            *(f"{'tc class':<10} {each.as_text()}, if applied" for each in self.places),
        ]
        return "\n".join(lines if self.places else [*lines, f"{'tc class':<10} none: the config names no interfaces"])


def explain_described_packet(config: Config, described: ExplainedPacket) -> PacketExplanation:
    """The class and the queues that the packet would get. ValueError: it is not described well."""
    policy = config.link_policy()
    packet = _packet(described)
    interfaces = _interfaces(policy, described.interface)
    verdict = explain_packet(policy, packet)
    return PacketExplanation(
        packet=_text(packet),
        traffic_class=verdict.traffic_class,
        why=verdict.because,
        mark=dscp_name(packet.dscp),
        places=tuple(place for each in interfaces for place in _places(policy, each, verdict.traffic_class)),
    )


def _packet(described: ExplainedPacket) -> Packet:
    given = [_address(each) for each in (described.src, described.dst) if each is not None]
    unsaid = _UNSAID[given[0].version if given else _IPV4]
    source = _address(described.src or unsaid[0])
    destination = _address(described.dst or unsaid[1])
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are of two IP versions; no packet has both")
    if described.proto is None and (described.sport is not None or described.dport is not None):
        raise ValueError("a port needs its protocol; add --proto tcp or --proto udp")
    if described.proto is not None and described.proto not in _PROTOCOLS:
        raise ValueError(
            f"{shown(described.proto)} is not known{did_you_mean(described.proto, _PROTOCOLS)}; allowed: tcp, udp"
        )
    return Packet(
        version=source.version,
        src=str(source),
        dst=str(destination),
        dscp=parse_dscp(described.dscp),
        proto=None if described.proto is None else _PROTOCOLS[described.proto],
        sport=described.sport,
        dport=described.dport,
    )


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IP address; write 10.20.0.5 or fd00:20::5") from None


def _interfaces(policy: LinkPolicy, name: str | None) -> Sequence[Interface]:
    names = [each.name for each in policy.interfaces]
    if name is None:
        return policy.interfaces
    if name not in names:
        known = f"the config has {', '.join(names)}" if names else "the config has none"
        raise ValueError(f"no interface is named {shown(name)}{did_you_mean(name, names)}; {known}")
    return [each for each in policy.interfaces if each.name == name]


def _places(policy: LinkPolicy, interface: Interface, traffic_class: str) -> list[TcPlace]:
    facts = LinkFacts(name=interface.name, index=1, up=True, mtu=1500, tx_queues=1, gso_max_size=65536)
    nothing = NetworkState(netns=interface.netns)
    try:
        compiled = compile_policy(
            _alone(policy, interface),
            interface.netns,
            facts={interface.name: facts},
            capabilities=_ASSUMED,
            observed=nothing,
        )
    except CannotKeepError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    links = sorted(compiled.desired.links, key=lambda each: each.ifb_for is not None)
    return [_place(compiled, link, interface, traffic_class) for link in links]


def _alone(policy: LinkPolicy, interface: Interface) -> LinkPolicy:
    return replace(policy, interfaces=(interface,))


def _place(compiled: Compiled, link: LinkState, interface: Interface, traffic_class: str) -> TcPlace:
    handles = [
        handle
        for (device, handle), name in compiled.labels.items()
        if device == link.name and traffic_class in name.split(", ") and handle & 0xFFFF
    ]
    options = next((each.options for each in link.classes if each.handle in handles), None)
    return TcPlace(
        interface=interface.name,
        netns=interface.netns,
        direction="egress" if link.ifb_for is None else "ingress",
        tc_class=handle_text(handles[0]) if handles else None,
        rate=options.rate * 8 if isinstance(options, HtbClass) else None,
        ceiling=options.ceil * 8 if isinstance(options, HtbClass) else None,
    )


def _text(packet: Packet) -> str:
    proto = {number: name for name, number in _PROTOCOLS.items()}.get(packet.proto or 0, "IP")
    ends = [
        f"[{address}]:{port}" if packet.version == _IPV6 and port else f"{address}:{port}" if port else address
        for address, port in ((packet.src, packet.sport), (packet.dst, packet.dport))
    ]
    return f"{proto} {ends[0]} -> {ends[1]}, {dscp_name(packet.dscp)}"
