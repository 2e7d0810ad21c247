# SPDX-License-Identifier: Apache-2.0
"""Packets go on, whatever becomes of a shaped link: another MTU, an interface that goes, another gateway beside it."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from qos.tc.change import making
from qos.tc.change.ledger import Confirmed, Ledger
from qos.tc.change.lock import lock_file
from qos.tc.change.site import Site
from qos.tc.keep.upkeep import Upkeep
from qos.tc.kernel.netlink import Kernel
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import Host, alone, joined
from tests.fakes.programs import until

pytestmark = pytest.mark.needs_root

DEFAULT_LEAF = 0x24 << 16


def site(folder: Path) -> Site:
    return Site(ledger=Ledger(folder / "qos"), lock_of=partial(lock_file, folder=folder))


def arrives(sender: Host, receiver: Host, size: int = 100) -> bool:
    with receiver.socket() as there, sender.socket() as here:
        there.bind((receiver.v4, 9000))
        there.settimeout(2)
        here.connect((receiver.v4, 9000))
        here.send(bytes(size))
        try:
            return len(there.recv(65536)) == size
        except TimeoutError:
            return False


def test_a_class_goes_on_though_its_mtu_shrank_below_what_waits_in_it(tmp_path: Path) -> None:
    with joined("tcgoes") as (left, right):
        for each in (left, right):
            each.ip("link set eth0 mtu 9000")
        policy = policy_of({"netns": left.name, "egress": "500kbit"})
        making.apply(site(tmp_path), policy)
        with left.socket() as sender:
            sender.connect((right.v4, 9001))
            for _ in range(20):
                with suppress(OSError):
                    sender.send(bytes(8900))
        with Kernel(left.name) as kernel:
            assert kernel.backlog("eth0", DEFAULT_LEAF)[0] > 0
            left.ip("link set eth0 mtu 1500")
            making.apply(site(tmp_path), policy)
            until(lambda: True if kernel.backlog("eth0", DEFAULT_LEAF)[0] == 0 else None, "an empty queue")
        assert arrives(left, right)


def test_packets_of_a_larger_mtu_are_let_through_by_whoever_keeps_the_link(tmp_path: Path) -> None:
    with joined("tcgoes") as (left, right):
        policy = policy_of({"netns": left.name})
        place = site(tmp_path)
        making.apply(place, policy)
        upkeep = Upkeep(place, left.name)
        upkeep.look(policy)
        for each in (left, right):
            each.ip("link set eth0 mtu 9000")
        assert not arrives(left, right, 8000)
        found = upkeep.look(policy)
        assert (set(found.changed), found.unmade) == ({"eth0"}, frozenset({"eth0"}))
        confirmed = place.ledger.read(Confirmed)
        assert confirmed is not None
        assert upkeep.make(confirmed) == ""
        assert arrives(left, right, 8000)


def test_the_keeper_survives_an_interface_that_went_and_removes_its_ifb(tmp_path: Path) -> None:
    with alone("tcgoes") as host:
        host.ip("link add eth1 type veth peer name peer1")
        policy = policy_of({"netns": host.name}, {"netns": host.name, "name": "eth1", "ingress": "10mbit"})
        place = site(tmp_path)
        making.apply(place, policy)
        upkeep = Upkeep(place, host.name)
        assert upkeep.look(policy).changed == {}
        host.ip("link del eth1")
        found = upkeep.look(policy)
        assert (found.missing, set(found.changed), found.unmade) == (("eth1",), {"eth1"}, frozenset({"eth1"}))


def test_another_gateways_interface_keeps_its_ifb(tmp_path: Path) -> None:
    with joined("tcgoes") as (left, right):
        left.ip("link add eth1 type veth peer name peer1")
        one, other = site(tmp_path / "one"), site(tmp_path / "other")
        making.apply(one, policy_of({"netns": left.name, "ingress": "10mbit"}))
        assert arrives(right, left)
        making.apply(other, policy_of({"netns": left.name, "name": "eth1", "ingress": "10mbit"}))
        making.release(other)
        assert arrives(right, left)
        assert making.survey(one, policy_of({"netns": left.name, "ingress": "10mbit"}))[0].steps == ()
