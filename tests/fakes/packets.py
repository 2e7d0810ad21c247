# SPDX-License-Identifier: Apache-2.0
"""IP packets as bytes, the policies that classify them, and a reader that shares nothing with the product."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import msgspec
from hypothesis import strategies as st

from qos.tc.design.classifier import Packet
from qos.tc.policy import Flow, LinkPolicy
from tests.fakes.link_policies import policy_of

__all__ = ["ADDRESSES", "frame", "frames", "ipv4", "ipv6", "policies", "read"]

PORTS = (53, 5000, 5009, 5010, 65535)
ADDRESSES = {4: ("10.0.0.1", "10.0.1.1", "192.0.2.7"), 6: ("fd00::1", "fd00:0:1::1", "2001:db8::7")}
_NETWORKS = {
    4: ("10.0.0.1/32", "10.0.0.0/24", "10.0.0.0/23", "10.0.0.0/8", "0.0.0.0/0"),
    6: ("fd00::1/128", "fd00::/48", "fd00::/47", "fd00::/8", "::/0", "2001:db8::/37"),
}
_CLASSES = ("realtime", "interactive", "batch", "background")
_WALKED = 6


def frame(packet: bytes, ether_type: int | None = None) -> bytes:
    """With an Ethernet header."""
    kind = {4: 0x0800, 6: 0x86DD}[packet[0] >> 4] if ether_type is None else ether_type
    return bytes(12) + kind.to_bytes(2, "big") + packet


def ipv4(
    payload: bytes,
    *,
    src: str = "10.0.0.1",
    dst: str = "192.0.2.7",
    dscp: int = 0,
    proto: int = 17,
    options: bytes = b"",
    fragment: int = 0,
) -> bytes:
    """RFC 791. fragment: flags and offset."""
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, dscp << 2 | 1, 4 * words + len(payload), 7, fragment, 64, proto, 0)
    return head + ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed + options + payload


def ipv6(
    payload: bytes,
    *,
    src: str = "fd00::1",
    dst: str = "2001:db8::7",
    dscp: int = 0,
    proto: int = 17,
    extensions: tuple[tuple[int, bytes], ...] = (),
) -> bytes:
    """RFC 8200. extensions: kind and content behind the next header's byte."""
    kinds = [*(kind for kind, _ in extensions), proto]
    rest = (
        b"".join(bytes([after]) + content for after, (_, content) in zip(kinds[1:], extensions, strict=True)) + payload
    )
    head = struct.pack(">IHBB", 6 << 28 | dscp << 22 | 1 << 20 | 0xABCDE, len(rest) & 0xFFFF, kinds[0], 64)
    return head + ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed + rest


def read(packet: bytes) -> Packet | None:
    """What the rules can ask of it; None: not an IP packet, or less than its header."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20 and packet[0] & 15 >= 5:
        offset = int.from_bytes(packet[6:8], "big") & 0x1FFF
        ports = () if offset else _ports(packet, 4 * (packet[0] & 15))
        return _packet(4, packet[12:16], packet[16:20], packet[1] >> 2, packet[9], ports)
    if version == 6 and len(packet) >= 40:
        proto, ports = _behind_extensions(packet)
        dscp = int.from_bytes(packet[:2], "big") >> 6 & 63
        return _packet(6, packet[8:24], packet[24:40], dscp, proto, ports)
    return None


def _packet(version: int, src: bytes, dst: bytes, dscp: int, proto: int | None, ports: tuple[int, ...]) -> Packet:
    sport, dport = ports or (None, None)
    ends = [str(ipaddress.ip_address(each)) for each in (src, dst)]
    return Packet(version=version, src=ends[0], dst=ends[1], dscp=dscp, proto=proto, sport=sport, dport=dport)


def _behind_extensions(packet: bytes) -> tuple[int | None, tuple[int, ...]]:
    at, proto = 40, packet[6]
    for _ in range(_WALKED):
        if proto not in (0, 43, 44, 51, 60):
            break
        if len(packet) < at + 8:
            return None, ()
        after, length = packet[at], packet[at + 1]
        if proto == 44 and int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF8:
            return after, ()
        at += 8 if proto == 44 else 4 * (length + 2) if proto == 51 else 8 * (length + 1)
        proto = after
    return proto, _ports(packet, at)


def _ports(packet: bytes, at: int) -> tuple[int, ...]:
    return struct.unpack_from(">HH", packet, at) if len(packet) >= at + 4 else ()


_EXTENSIONS = st.one_of(
    st.builds(
        lambda kind, words: (kind, bytes([words]) + bytes(8 * words + 6)),
        st.sampled_from((0, 43, 60)),
        st.integers(0, 2),
    ),
    st.builds(lambda words: (51, bytes([words]) + bytes(4 * words + 6)), st.integers(2, 4)),
    st.builds(lambda offset: (44, struct.pack(">BHI", 0, offset, 1)), st.sampled_from((0, 1, 8, 0xFFF8))),
)


@st.composite
def frames(draw: Any, *, whole_headers: bool = False) -> bytes:
    """Frames of all sorts. whole_headers: never less than the IP header."""
    ports = struct.pack(">HH", draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS)))
    payload = ports + bytes(draw(st.integers(0, 12)))
    version = draw(st.sampled_from((4, 6)))
    src, dst = (draw(st.sampled_from(ADDRESSES[version])) for _ in range(2))
    dscp, proto = draw(st.sampled_from((0, 1, 10, 18, 46, 63))), draw(st.sampled_from((6, 17, 1, 0)))
    if version == 4:
        options = bytes(4 * draw(st.sampled_from((0, 0, 1, 10))))
        fragment = draw(st.sampled_from((0, 0, 0x4000, 0x2000, 0x2001, 0x1FFF)))
        packet = ipv4(payload, src=src, dst=dst, dscp=dscp, proto=proto, options=options, fragment=fragment)
    else:
        extensions = tuple(draw(st.lists(_EXTENSIONS, max_size=8 if draw(st.booleans()) else 0)))
        packet = ipv6(payload, src=src, dst=dst, dscp=dscp, proto=proto, extensions=extensions)
    head = 20 if version == 4 else 40
    cut = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
    if cut:
        packet = packet[: draw(st.integers(head if whole_headers else 1, len(packet)))]
    if draw(st.integers(0, 9)) == 0:
        return frame(b"\x00\x07\x08\x00" + packet, 0x8100)  # a VLAN tag in the frame
    return frame(packet, 0x0806 if draw(st.integers(0, 19)) == 0 else {4: 0x0800, 6: 0x86DD}[version])


_RANGES = st.lists(
    st.one_of(
        st.sampled_from(PORTS).map(lambda port: (port, port)),
        st.sampled_from(((5000, 5009), (5001, 5010), (1, 65535), (1, 52), (5010, 5010))),
    ),
    max_size=3,
).map(tuple)


@st.composite
def _flows(draw: Any) -> Flow:
    version = draw(st.sampled_from((4, 6)))
    network = st.one_of(st.none(), st.sampled_from(_NETWORKS[version]))
    proto = draw(st.sampled_from((None, 6, 17)))
    return Flow(
        traffic_class=draw(st.sampled_from(_CLASSES)),
        proto=proto,
        src=draw(network),
        dst=draw(network),
        sport=draw(_RANGES) if proto else (),
        dport=draw(_RANGES) if proto else (),
        dscp=draw(st.sampled_from((None, None, 0, 18, 46))),
        before_nat=False,
    )


def policies() -> st.SearchStrategy[LinkPolicy]:
    """The built-in classes with any flows."""
    return st.lists(_flows(), max_size=6).map(lambda flows: msgspec.structs.replace(policy_of(), flows=tuple(flows)))
