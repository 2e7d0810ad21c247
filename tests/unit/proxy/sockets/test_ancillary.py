# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells beside a datagram is read as it was written, once, and rubbish never raises."""

from __future__ import annotations

import socket
import sys

from hypothesis import given
from hypothesis import strategies as st

from proxy.sockets.ancillary import AncillaryReader, Told
from proxy.sockets.linux import IP_PKTINFO, IPV6_TCLASS, SO_RXQ_OVFL, SOL_UDP, UDP_GRO

IPV6_PKTINFO = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)


def number(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def test_all_of_a_train_on_a_busy_socket():
    parts = [
        (socket.IPPROTO_IP, socket.IP_TOS, bytes([46 << 2 | 2])),
        (SOL_UDP, UDP_GRO, number(1200)),
        (socket.SOL_SOCKET, SO_RXQ_OVFL, number(7)),
        (socket.IPPROTO_IP, IP_PKTINFO, number(3) + bytes([127, 0, 0, 2]) + bytes([127, 0, 0, 9])),
    ]
    told = AncillaryReader().read(parts)
    assert told[:3] == (46 << 2 | 2, 1200, 7)
    # The reply's route chooses the interface; the destination of what came, a broadcast perhaps, is no source.
    assert told.source == (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + bytes([127, 0, 0, 2]) + bytes(4))


def test_an_ipv6_address_keeps_its_interface_only_where_it_means_nothing_without():
    reader, everywhere = AncillaryReader(), bytes(15) + b"\1"
    link_local = b"\xfe\x80" + bytes(13) + b"\5"
    for address, interface in ((everywhere, 0), (link_local, 3)):
        told = reader.read([(*IPV6_PKTINFO, address + number(3))])
        assert told.source == (*IPV6_PKTINFO, address + number(interface))


def test_nothing_said_is_nothing_known():
    assert AncillaryReader().read([]) == Told(0, 0, None, None)


KINDS = st.sampled_from(
    [
        (socket.IPPROTO_IP, socket.IP_TOS),
        (socket.IPPROTO_IPV6, IPV6_TCLASS),
        (SOL_UDP, UDP_GRO),
        (socket.SOL_SOCKET, SO_RXQ_OVFL),
        (socket.IPPROTO_IP, IP_PKTINFO),
        IPV6_PKTINFO,
        (1, 2),
    ]
)


@given(st.lists(st.tuples(KINDS, st.binary(max_size=24)), max_size=6))
def test_anything_can_be_read_and_is_read_alike_again(parts):
    reader, asked = AncillaryReader(), [(*kind, value) for kind, value in parts]
    assert reader.read(asked) == reader.read(asked) == AncillaryReader().read(asked)


def test_what_is_remembered_has_a_bound():
    reader = AncillaryReader()
    for drops in range(5000):
        assert reader.read([(socket.SOL_SOCKET, SO_RXQ_OVFL, number(drops))]).drops == drops
    assert len(reader._known) <= 1024
