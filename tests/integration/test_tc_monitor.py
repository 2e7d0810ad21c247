# SPDX-License-Identifier: Apache-2.0
"""Who watches is told what others do to traffic control and devices, on this machine's kernel."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from qos.tc.kernel.monitor import Event, Happened, Monitor
from qos.tc.kernel.netlink import Kernel
from tests.fakes.namespaces import Host, alone
from tests.fakes.tc_tree import INNER, ROOT_HTB, make_tree, seen

pytestmark = pytest.mark.needs_root


@pytest.fixture
def host() -> Iterator[Host]:
    with alone("door") as made:
        yield made


@pytest.fixture
def kernel(host) -> Iterator[Kernel]:
    with Kernel(host.name) as opened:
        yield opened


def told(monitor: Monitor, wanted: Event) -> list[Event]:
    """What it tells until this is among it."""
    events: list[Event] = []
    while wanted not in events:
        assert select.select([monitor], [], [], 20)[0], f"{wanted} was not told, but {events}"
        events += monitor.read()
    return events


def test_changes_of_others_are_told_and_ours_are_not(host, kernel):
    with Monitor(host.name) as monitor:
        monitor.ignore.add(kernel.port)
        index = kernel.facts()["eth0"].index
        make_tree(kernel)
        host.ip("link set eth0 down")
        done = Event(Happened.LINK, index, "eth0", False)
        assert not [each for each in told(monitor, done) if each.happened is Happened.TC]
        host.tc("class change dev eth0 parent 51a:1 classid 51a:30 htb rate 1mbit")
        assert Event(Happened.TC, index) in told(monitor, Event(Happened.TC, index))


def test_devices_that_move_or_go_are_told(host):
    with Monitor(host.name) as monitor, Kernel(host.name) as kernel:
        index = kernel.facts()["eth0"].index
        host.ip("link set eth0 down")
        told(monitor, Event(Happened.LINK, index, "eth0", False))
        host.ip("link set eth0 name wan0")
        told(monitor, Event(Happened.LINK, index, "wan0", False))
        host.ip("link del wan0")
        told(monitor, Event(Happened.GONE, index, "wan0"))


def test_more_than_fits_is_told_as_lost(host, kernel):
    with Monitor(host.name) as monitor:
        # Many small changes, and nobody reads.
        with socket.socket(fileno=os.dup(monitor.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        kernel.add("eth0", ROOT_HTB)
        for _ in range(100):
            kernel.change("eth0", INNER) if INNER in seen(kernel).classes else kernel.add("eth0", INNER)
        assert Event(Happened.LOST, 0) in told(monitor, Event(Happened.LOST, 0))
