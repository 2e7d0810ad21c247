# SPDX-License-Identifier: Apache-2.0
"""Packets as they lie on the wire of loopback, or of a namespace's device: what no socket option can colour.

    with capturing() as wire: ...; assert wire.ds_fields(to=port) == {46 << 2}

A packet socket (packet(7)) needs root: mark such a test with needs_root.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SYN, ACK = 0x02, 0x10
_ETH_P_ALL = 0x0003
_OUTGOING = 4  # PACKET_OUTGOING in linux/if_packet.h: loopback shows every packet twice, once as it leaves
_SO_RCVBUFFORCE = 33
_ROOM = 64 << 20
"""Other tests talk over loopback, too, and what does not fit is lost."""
_NO_FRAGMENT = 0x1FFF


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet with a TCP segment or a UDP datagram in it."""

    version: int
    protocol: int
    source: int
    target: int
    """Ports."""
    ds_field: int
    flags: int
    """TCP's; 0 in UDP."""
    payload: bytes

    @property
    def opens(self) -> bool:
        """Whether it is the first packet of a TCP connection."""
        return self.flags & (SYN | ACK) == SYN


class Wire:
    """What has passed so far."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._packets: list[Packet] = []

    def packets(self, *, to: int | None = None, by: int | None = None) -> list[Packet]:
        """Those to a port, or from one, in the order of their leaving."""
        self._drain()
        return [
            each for each in self._packets if (to is None or each.target == to) and (by is None or each.source == by)
        ]

    def ds_fields(self, *, to: int | None = None, by: int | None = None) -> set[int]:
        """The DS fields of those, ECN bits included. Nobody sent any: a test that asks is wrong."""
        packets = self.packets(to=to, by=by)
        assert packets, f"no packet to {to} from {by} was seen"
        return {each.ds_field for each in packets}

    def forget(self) -> None:
        """Look only at what comes from now on."""
        self._drain()
        self._packets.clear()

    def _drain(self) -> None:
        while True:
            try:
                frame, (_, _, kind, *_) = self._sock.recvfrom(65535)
            except BlockingIOError:
                return
            if kind == _OUTGOING and (packet := parse(frame)) is not None:
                self._packets.append(packet)


@contextmanager
def capturing(device: str = "lo", sock: socket.socket | None = None) -> Iterator[Wire]:
    """See what leaves by a device. sock: an unbound packet socket of another namespace (`Host.socket`)."""
    with sock or socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as listening:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        listening.bind((device, _ETH_P_ALL))
        yield Wire(listening)


def parse(packet: bytes) -> Packet | None:
    """An IP packet without its link header; None: neither TCP nor UDP, or not a first fragment."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        if struct.unpack_from("!H", packet, 6)[0] & _NO_FRAGMENT:
            return None
        protocol, ds_field, start = packet[9], packet[1], (packet[0] & 0x0F) * 4
    elif version == 6 and len(packet) >= 40:
        protocol, ds_field, start = packet[6], struct.unpack_from("!H", packet)[0] >> 4 & 0xFF, 40
    else:
        return None
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) or len(packet) < start + 8:
        return None
    source, target = struct.unpack_from("!HH", packet, start)
    flags, header = 0, 8
    if protocol == socket.IPPROTO_TCP:
        flags, header = packet[start + 13], (packet[start + 12] >> 4) * 4
    return Packet(version, protocol, source, target, ds_field, flags, packet[start + header :])
