# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from qos.tc.kernel.attributes import text
from qos.tc.kernel.monitor import Event, Happened, Monitor, parse_events
from qos.tc.kernel.observe import TC_MESSAGE

NEW_LINK, DELETED_LINK, NEW_QDISC, DELETED_CLASS, NEW_CHAIN, NEW_ADDRESS = 16, 17, 36, 41, 100, 20


def message(kind: int, port: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, port) + body + bytes(-len(body) % 4)


def tc(kind: int, port: int, index: int) -> bytes:
    return message(kind, port, TC_MESSAGE.pack(0, 0, 0, index, 0x10000, 0xFFFFFFFF, 0) + text(1, "htb"))


def link(kind: int, index: int, name: str, *, up: bool) -> bytes:
    return message(kind, 0, struct.pack("=BBHiII", 0, 0, 1, index, int(up), 0) + text(3, name))


def test_a_change_of_somebody_else_names_the_device():
    assert parse_events(tc(NEW_QDISC, 4321, 7), ignore=()) == [Event(Happened.TC, 7)]
    assert parse_events(tc(DELETED_CLASS, 0, 7) + tc(NEW_CHAIN, 5, 8), ignore={4321}) == [
        Event(Happened.TC, 7),
        Event(Happened.TC, 8),
    ]


def test_our_own_changes_are_not_told():
    assert parse_events(tc(NEW_QDISC, 4321, 7) + tc(NEW_QDISC, 1, 7), ignore={4321}) == [Event(Happened.TC, 7)]
    assert parse_events(tc(NEW_QDISC, 4321, 7), ignore={4321}) == []


def test_devices_come_change_and_go():
    told = link(NEW_LINK, 3, "eth0", up=True) + link(DELETED_LINK, 3, "eth0", up=False)
    assert parse_events(told, ignore={0}) == [Event(Happened.LINK, 3, "eth0", True), Event(Happened.GONE, 3, "eth0")]


def test_what_else_the_kernel_tells_is_left():
    assert parse_events(message(NEW_ADDRESS, 0, bytes(24)), ignore=()) == []
    assert parse_events(message(NEW_QDISC, 0, bytes(4)) + message(NEW_LINK, 0, b""), ignore=()) == []


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(data):
    assert isinstance(parse_events(data, ignore=()), list)


def test_with_nothing_to_read_it_does_not_wait():
    with Monitor(None) as monitor:
        assert monitor.fileno() >= 0
        assert all(isinstance(each, Event) for each in monitor.read())
