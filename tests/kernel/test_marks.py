# SPDX-License-Identifier: Apache-2.0
"""A kernel that takes no priority with a packet: the socket is marked anew instead, and both marks arrive."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter

import pytest

from proxy.listeners.udp import UdpSocket, bind, marks_packets
from qos.marking import Mark, ancillary
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from tests.fakes.namespaces import joined

PORT = 5999
REALTIME, DEFAULT, BULK = Mark(46, 6), Mark(18, 4), Mark(1, 2)
BANDS = {REALTIME: 0x10001, DEFAULT: 0x10002, BULK: 0x10003}
ORDER = [REALTIME, BULK, BULK, DEFAULT, REALTIME, DEFAULT, BULK, REALTIME] * 5


@pytest.mark.parametrize("version", [4, 6])
def test_each_datagram_has_its_dscp_and_its_priority(version):
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with joined("marks") as (left, right), right.socket(family) as receiver:
        with left.socket(family) as refused:
            with pytest.raises(OSError) as caught:
                refused.sendmsg([b"x"], ancillary(family, 0, 6), 0, (getattr(right, f"v{version}"), PORT))
            assert caught.value.errno == errno.EINVAL
        assert not marks_packets() and not probe(left.name).per_packet_priority
        left.tc("qdisc add dev eth0 root handle 1: prio bands 3 priomap 2 2 2 2 1 2 0 2 2 2 2 2 2 2 2 2")
        receiver.bind((getattr(right, f"v{version}"), PORT))
        receiver.settimeout(60)
        ask = (socket.IPPROTO_IP, socket.IP_RECVTOS) if version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)
        receiver.setsockopt(*ask, 1)

        async def send() -> None:
            opened = left.call(lambda: bind(getattr(left, f"v{version}"), 0))
            sender = UdpSocket(opened, lambda *_: None, burst_ended=lambda: None, mark=DEFAULT)
            try:
                for number, mark in enumerate(ORDER):
                    sender.send(bytes([number]), receiver.getsockname(), mark)
                assert (sender.sent, sum(sender.dropped.values())) == (len(ORDER), 0)
            finally:
                sender.close()

        with Kernel(left.name) as kernel:
            asyncio.run(send())
            counted = kernel.counters("eth0")
        arrived = {}
        for _ in ORDER:
            payload, ((_, _, field),), *_ = receiver.recvmsg(10, 100)
            arrived[payload[0]] = field[0] >> 2
        assert arrived == {number: mark.dscp for number, mark in enumerate(ORDER)}
        sent = Counter(BANDS[each] for each in ORDER)
        # The kernel's own, such as questions for neighbours, go by the last band.
        assert {band: each.packets - sent[band] for band, each in counted.items() if band in (0x10001, 0x10002)} == {
            0x10001: 0,
            0x10002: 0,
        }
        assert counted[0x10003].packets >= sent[0x10003]
