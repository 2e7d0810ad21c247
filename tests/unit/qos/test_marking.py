# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import sys

import pytest

from qos.dscp import CODE_POINTS
from qos.marking import (
    UNMARKED,
    Mark,
    ancillary,
    mark_of,
    received_ds_field,
    socket_options,
    usual_priority,
)
from qos.settings import BUILT_IN_CLASSES, class_table

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
EF = 46 << 2
SO_PRIORITY = 12


def test_a_class_says_its_mark():
    realtime, interactive, batch, background = class_table(BUILT_IN_CLASSES)
    assert mark_of(realtime) == Mark(46, 6)
    assert mark_of(interactive) == Mark(18, 4)
    assert mark_of(batch) == Mark(10, 0)
    assert mark_of(background) == Mark(1, 2)
    assert Mark(0, 0) == UNMARKED


@pytest.mark.parametrize("family", LOOPBACK)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("mark", [Mark(46, 6), Mark(18, 4), Mark(10, 0), Mark(1, 2), UNMARKED])
def test_a_socket_keeps_both_and_its_priority_is_not_overwritten(family, kind, mark):
    with socket.socket(family, kind) as sock:
        for option in socket_options(family, mark):
            sock.setsockopt(*option)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == mark.dscp << 2
        if family == socket.AF_INET6:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == mark.dscp << 2
        assert sock.getsockopt(socket.SOL_SOCKET, SO_PRIORITY) == mark.priority


@pytest.mark.parametrize("family", LOOPBACK)
def test_the_priority_comes_last(family):
    assert socket_options(family, Mark(46, 6))[-1] == (socket.SOL_SOCKET, SO_PRIORITY, 6)
    assert ancillary(family, EF, 6)[-1][:2] == (socket.SOL_SOCKET, SO_PRIORITY)
    assert ancillary(family, EF) == ancillary(family, EF, 6)[:-1]


def test_a_unix_socket_has_nothing_to_mark():
    assert socket_options(socket.AF_UNIX, Mark(46, 6)) == []


@pytest.mark.parametrize(
    ("sender", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")],
)
def test_a_datagram_arrives_with_what_its_ancillary_data_say(sender, host):
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiving, socket.socket(sender, socket.SOCK_DGRAM) as sending:
        receiving.settimeout(10)
        receiving.bind((LOOPBACK[family], 0))
        if family == socket.AF_INET:
            receiving.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            receiving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        for ds_field in (EF, EF | 2, 0):
            sending.sendmsg([b"x"], ancillary(sender, ds_field), 0, (host, receiving.getsockname()[1]))
            _, parts, _, _ = receiving.recvmsg(10, 100)
            assert received_ds_field(parts) == ds_field


def test_what_is_not_told_is_0():
    assert received_ds_field([]) == 0
    assert received_ds_field([(socket.SOL_SOCKET, 1, b"\xff" * 4)]) == 0
    assert received_ds_field([(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, EF.to_bytes(4, sys.byteorder))]) == EF
    assert received_ds_field([(socket.IPPROTO_IP, socket.IP_TOS, bytes([EF]))]) == EF


def test_where_only_the_dscp_is_known_lower_effort_never_comes_first():
    order = [
        usual_priority(CODE_POINTS[name]) for name in ("EF", "VA", "CS5", "AF41", "AF21", "AF11", "DF", "LE", "CS1")
    ]
    assert order == [6, 6, 6, 6, 0, 0, 0, 2, 2]
