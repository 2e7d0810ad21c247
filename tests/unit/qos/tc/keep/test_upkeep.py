# SPDX-License-Identifier: Apache-2.0
"""One namespace: compared by interface, changed under the locks only, counted by class."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from qos.tc.change import making
from qos.tc.change.ledger import Baseline, Confirmed
from qos.tc.keep.upkeep import Upkeep
from qos.tc.kernel.statistics import Counters
from tests.fakes.fake_kernel import FakeDevice
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import FakePlace


@pytest.fixture
def place(tmp_path: Path) -> FakePlace:
    place = FakePlace(tmp_path)
    making.apply(place.site, policy_of({"ingress": "10mbit"}, {"name": "eth1"}))
    return place


def confirmed(place: FakePlace) -> Confirmed:
    found = place.ledger.read(Confirmed)
    assert found is not None
    return found


def drift(place: FakePlace, device: str) -> None:
    found = place.kernel.devices[device]
    found.destroy_qdisc(next(iter(found.qdiscs.values())))


def test_what_stands_is_made_and_needs_nothing(place):
    upkeep = Upkeep(place.site, None)
    assert upkeep.found.trouble("eth0") == "not looked at yet"
    found = upkeep.look(confirmed(place).policy)
    assert (found.changed, found.trouble("eth0"), found.trouble("eth1")) == ({}, "", "")
    assert upkeep.make(confirmed(place)) == ""


def test_what_is_wrong_on_an_ifb_is_wrong_on_its_interface(place):
    upkeep = Upkeep(place.site, None)
    upkeep.look(confirmed(place).policy)
    (ifb,) = (each.name for each in place.kernel.devices.values() if each.ifb_for == "eth0")
    drift(place, ifb)
    found = upkeep.look(confirmed(place).policy)
    assert (set(found.changed), found.unmade) == ({"eth0"}, frozenset())
    assert found.trouble("eth0") and not found.trouble("eth1")
    assert upkeep.make(confirmed(place)) == ""
    assert upkeep.found.changed == upkeep.look(confirmed(place).policy).changed == {}


def test_only_a_device_that_is_new_is_unmade(place):
    upkeep = Upkeep(place.site, None)
    upkeep.look(confirmed(place).policy)
    drift(place, "eth0")
    place.kernel.devices["eth1"] = FakeDevice("eth1")
    place.kernel.devices = {"other": FakeDevice("other")} | place.kernel.devices
    found = upkeep.look(confirmed(place).policy)
    assert (set(found.changed), found.unmade) == ({"eth0", "eth1"}, frozenset({"eth0", "eth1"}))


def test_the_ifb_of_an_interface_that_went_is_work_to_do_and_nobodys_drift(place):
    upkeep = Upkeep(place.site, None)
    upkeep.look(confirmed(place).policy)
    del place.kernel.devices["eth0"]
    found = upkeep.look(confirmed(place).policy)
    assert (found.missing, set(found.changed), found.unmade) == (("eth0",), {"eth0"}, frozenset({"eth0"}))
    assert upkeep.make(confirmed(place)) == ""
    assert set(place.kernel.devices) == {"eth1"}


def test_another_mtu_is_nobodys_drift(place):
    upkeep = Upkeep(place.site, None)
    upkeep.look(confirmed(place).policy)
    place.kernel.devices["eth1"].mtu = 9000
    found = upkeep.look(confirmed(place).policy)
    assert (set(found.changed), found.unmade) == ({"eth1"}, frozenset({"eth1"}))
    assert upkeep.make(confirmed(place)) == ""
    drift(place, "eth1")
    assert upkeep.look(confirmed(place).policy).unmade == frozenset()


def test_what_a_new_device_had_is_written_down_before_it_is_changed(place):
    upkeep = Upkeep(place.site, None)
    place.kernel.devices = {"other": FakeDevice("other"), "eth0": FakeDevice("eth0", gso_max_size=30_000)}
    assert upkeep.make(confirmed(place)) == ""
    baseline = place.ledger.read(Baseline)
    assert {each.device: each.index for each in baseline.devices}["eth0"] == 3


def test_it_changes_nothing_where_the_books_have_moved_on(place):
    upkeep, before = Upkeep(place.site, None), confirmed(place)
    drift(place, "eth0")
    calls = place.kernel.calls
    assert upkeep.make(replace(before, id="another")) is None
    making.apply(place.site, policy_of({"egress": "30mbit"}, {"name": "eth1"}), confirm_s=60)
    calls = place.kernel.calls
    assert upkeep.make(before) is None
    assert place.kernel.calls == calls


def test_a_long_difference_is_cut(place):
    upkeep = Upkeep(place.site, None)
    drift(place, "eth0")
    said = upkeep.look(confirmed(place).policy).changed["eth0"]
    assert said.count("; ") == 8 and said.endswith(" more")


def test_counts_are_read_from_every_device_that_is_kept(place, monkeypatch):
    upkeep = Upkeep(place.site, None)
    upkeep.count()
    upkeep.look(confirmed(place).policy)
    read = []

    def counters(device: str) -> dict[int, Counters]:
        read.append(device)
        return dict.fromkeys(place.kernel.devices[device].classes, Counters(bytes=7))

    monkeypatch.setattr(place.kernel, "counters", counters)
    upkeep.count()
    assert len(read) == 3 and {"eth0", "eth1"} < set(read)
    target = upkeep.found.target
    both = upkeep.readings.of_interface("eth0", target.desired, target.labels)
    assert {(each.direction, each.bytes) for each in both} == {("egress", 7), ("ingress", 7)}


def test_a_namespace_is_known_by_what_it_is_and_not_by_its_name(place):
    assert Upkeep(place.site, None).identity != ""
    assert Upkeep(place.site, "misspelt").identity == ""


def test_a_table_that_somebody_removed_is_missed_on_every_interface_and_made_again(place):
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    making.apply(place.site, policy_of({"ingress": "10mbit"}, {"name": "eth1"}, flows=(early,)))
    upkeep = Upkeep(place.site, None)
    assert upkeep.look(confirmed(place).policy).changed == {}
    table, place.kernel.table = place.kernel.table, ""
    found = upkeep.look(confirmed(place).policy)
    assert set(found.changed) == {"eth0", "eth1"} and found.unmade == frozenset()
    assert found.trouble("eth0") == f"+ nftables table inet inferlane: {table}"
    assert upkeep.make(confirmed(place)) == ""
    assert place.kernel.table == table
