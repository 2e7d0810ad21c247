# SPDX-License-Identifier: Apache-2.0
"""What the keeper does at each look, on kernels in memory: repairs, its bounds, and whose turn it is."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qos.tc.change import making
from qos.tc.change.ledger import Confirmed, LastRollback, Pending
from qos.tc.change.lock import locked
from qos.tc.errors import KernelError
from qos.tc.keep.keeping import FULL_CHECK_S, WINDOW_S
from qos.tc.keep.messages import Ended, LogLine, Standing
from qos.tc.keep.vigil import Vigil
from qos.tc.policy import LinkPolicy
from tests.fakes.fake_kernel import FakeDevice, FakeKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import FakePlace


def with_safety(policy: LinkPolicy, **safety: Any) -> LinkPolicy:
    return replace(policy, safety=replace(policy.safety, **safety))


class Kept:
    """A vigil over a place, with what it said."""

    def __init__(self, place: FakePlace) -> None:
        self.place = place
        self.vigil = Vigil(place.site)
        self.lines: list[LogLine] = []
        self.standings: list[Standing] = []
        self.now = 0.0

    def confirm(self, **safety: Any) -> LinkPolicy:
        policy = with_safety(policy_of(), **safety)
        making.apply(self.place.site, policy)
        return policy

    def looks(self, *, after: float = 1.0) -> list[str]:
        """Look once; the names of what was said."""
        self.now += after
        self.waits = self.vigil.look(self.now)
        said = []
        for report in self.vigil.reports():
            if isinstance(report, LogLine):
                self.lines.append(report)
                said.append(report.name)
            else:
                assert isinstance(report, Standing)
                self.standings.append(report)
        return [each for each in said if each != "traffic_control_note"]

    @property
    def in_force(self) -> dict[str, bool]:
        return {each.interface: each.in_force for each in self.vigil.standing().links}

    def drifts(self) -> None:
        """Somebody removes our root."""
        device = self.place.kernel.devices["eth0"]
        device.destroy_qdisc(next(iter(device.qdiscs.values())))

    def is_made_anew(self) -> None:
        """Another device of the same name, which has nothing and another index."""
        self.place.kernel.devices = {"first": FakeDevice("first"), "eth0": FakeDevice("eth0")}

    def shaped(self) -> bool:
        return bool(self.place.kernel.devices["eth0"].qdiscs)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(FakePlace(tmp_path))


def test_without_a_confirmed_policy_it_touches_nothing(kept):
    assert kept.looks() == []
    assert kept.standings == [Standing(id=None, digest=None, duty="idle")]
    assert kept.place.kernel.calls == 0


def test_what_is_there_already_is_left_alone_and_said_once(kept):
    policy = kept.confirm()
    before = kept.place.kernel.calls
    assert kept.looks() == kept.looks() == []
    assert kept.place.kernel.calls == before
    (standing,) = kept.standings
    assert (standing.digest, standing.duty, kept.in_force) == (policy.digest, "keep", {"eth0": True})


def test_after_a_reboot_it_is_made_again_and_that_is_no_repair(kept):
    kept.confirm()
    kept.place.boot, kept.place.kernels[None].devices = "next boot", {"eth0": FakeDevice("eth0")}
    assert kept.looks() == ["traffic_control_made"]
    assert (kept.in_force, kept.shaped(), kept.vigil.repairs) == ({"eth0": True}, True, 0)


def test_drift_is_repaired_and_told(kept):
    kept.confirm()
    kept.looks()
    kept.drifts()
    assert kept.looks() == ["traffic_control_repaired"]
    assert "realtime" in kept.lines[-1].detail and "more" in kept.lines[-1].detail
    assert (kept.in_force, kept.shaped(), kept.vigil.repairs) == ({"eth0": True}, True, 1)
    assert kept.standings[-1].repairs == 1
    assert kept.looks() == []


def test_whoever_insists_wins_after_so_many_repairs_and_the_log_says_so_once(kept):
    kept.confirm(repairs_per_10m=2)
    kept.looks()
    for _ in range(2):
        kept.drifts()
        assert kept.looks() == ["traffic_control_repaired"]
    kept.drifts()
    assert kept.looks() == ["traffic_control_contested"]
    assert kept.lines[-1].level == "error" and "find who" in kept.lines[-1].detail
    assert kept.looks() == []
    assert (kept.in_force, kept.shaped()) == ({"eth0": False}, False)
    assert kept.looks(after=WINDOW_S) == ["traffic_control_repaired"]
    assert kept.in_force == {"eth0": True}


def test_drift_is_only_reported_where_the_config_says_so_and_not_at_all_where_it_says_that(kept):
    policy = kept.confirm(drift="report")
    kept.looks()
    kept.drifts()
    assert (kept.looks(), kept.looks(), kept.shaped()) == (["traffic_control_drift"], [], False)
    kept.place.ledger.write(
        replace(kept.place.ledger.read(Confirmed), id="c9", policy=with_safety(policy, drift="off"))
    )
    assert (kept.looks(), kept.shaped()) == ([], False)


@pytest.mark.parametrize("drift", ["off", "report", "repair"])
def test_an_interface_made_anew_is_shaped_anew(kept, drift):
    kept.confirm(drift=drift, repairs_per_10m=0)
    kept.looks()
    kept.is_made_anew()
    assert (kept.looks(), kept.shaped(), kept.vigil.repairs) == (["traffic_control_made"], True, 0)


def test_an_interface_that_is_gone_is_told_once_and_shaped_when_it_is_back(kept):
    kept.confirm()
    kept.looks()
    kept.place.kernel.devices.pop("eth0")
    assert kept.looks() == ["interface_missing"]
    assert kept.looks() == []
    assert kept.in_force == {"eth0": False}
    kept.is_made_anew()
    assert kept.looks() == ["interface_back", "traffic_control_made"]
    assert kept.in_force == {"eth0": True}


def test_what_fails_is_told_and_not_tried_again_at_each_message_it_causes(kept):
    kept.confirm()
    kept.looks()
    kept.is_made_anew()
    kept.place.kernel.fails = lambda call: True
    assert kept.looks() == ["traffic_control_failed"]
    assert "injected" in kept.lines[-1].detail
    assert kept.waits == (FULL_CHECK_S, FULL_CHECK_S)
    assert kept.in_force == {"eth0": False}
    kept.place.kernel.fails = lambda call: False
    assert kept.looks() == ["traffic_control_repaired"]


def test_a_namespace_that_is_gone_takes_nobody_along(kept):
    kept.confirm()
    confirmed = kept.place.ledger.read(Confirmed)
    there = confirmed.policy.interfaces[0]
    both = replace(confirmed.policy, interfaces=(replace(there, netns="gone", name="eth7"), there))
    kept.place.ledger.write(replace(confirmed, id="c2", policy=both))
    kept.drifts()

    def opened(netns: str | None) -> Any:
        if netns not in kept.place.kernels:
            raise KernelError(errno.ENOENT, "there is none of this name", f"namespace {netns}")
        return contextlib.nullcontext(kept.place.kernels[netns])

    kept.vigil = Vigil(dataclasses.replace(kept.place.site, open_kernel=opened))
    assert kept.looks() == ["traffic_control_failed", "traffic_control_made"]
    assert (kept.lines[0].netns, kept.in_force) == ("gone", {"eth7": False, "eth0": True})
    kept.place.kernels["gone"] = FakeKernel(FakeDevice("eth7"), netns="gone")
    assert kept.looks() == ["traffic_control_made"]
    assert kept.in_force == {"eth7": True, "eth0": True}


def pending(kept: Kept, **changes: Any) -> Pending:
    """A change that waits for its confirmation, on its way since the policy was confirmed."""
    kept.confirm()
    policy = policy_of({"egress": "30mbit"})
    changed = making.apply(kept.place.site, policy, confirm_s=60.0)
    assert changed.pending is not None
    kept.place.ledger.write(replace(changed.pending, **changes))
    return changed.pending


def test_while_a_change_waits_it_keeps_its_hands_off(kept):
    waits = pending(kept)
    assert kept.looks() == ["traffic_control_hands_off"]
    kept.drifts()
    kept.place.now += 59.0
    assert (kept.looks(), kept.shaped()) == ([], False)
    assert waits.id in kept.lines[0].detail
    assert kept.vigil.standing().duty == "hands off"


def test_a_change_that_was_confirmed_is_kept_from_then_on(kept):
    waits = pending(kept)
    kept.looks()
    making.confirm(kept.place.site)
    assert kept.looks() == []
    assert kept.standings[-1].id == waits.id
    kept.drifts()
    assert kept.looks() == ["traffic_control_repaired"]


def test_a_change_whose_watcher_died_is_undone_and_what_was_confirmed_is_kept(kept):
    waits = pending(kept)
    kept.looks()
    kept.place.now += 66.0
    assert kept.looks() == ["traffic_control_reverted"]
    assert kept.place.pending() is None
    assert kept.place.ledger.read(LastRollback).id == waits.id
    assert kept.looks() == []
    assert kept.in_force == {"eth0": True}


def test_a_change_of_another_boot_is_forgotten_and_what_was_confirmed_is_made(kept):
    pending(kept)
    kept.place.boot, kept.place.kernels[None].devices = "next boot", {"eth0": FakeDevice("eth0")}
    assert kept.looks() == ["traffic_control_reverted"]
    assert kept.place.pending() is None
    assert "started anew" in kept.place.ledger.read(LastRollback).why
    assert kept.looks() == ["traffic_control_made"]


def test_a_change_whose_applier_died_half_way_is_undone(kept):
    pending(kept, deadline=None, confirm_s=None, done=False)
    assert kept.looks() == ["traffic_control_reverted"]
    assert kept.looks() == []
    assert kept.in_force == {"eth0": True}


def test_whoever_holds_the_lock_has_its_turn(kept):
    kept.confirm()
    kept.looks()
    kept.drifts()
    clock = iter(range(0, 1000, 10))
    kept.vigil = Vigil(dataclasses.replace(kept.place.site, clock=lambda: float(next(clock)), sleep=lambda _: None))
    with locked([kept.place.ledger.lock], who="a test"):
        assert (kept.looks(), kept.shaped(), kept.waits[0]) == (["traffic_control_busy"], False, 1.0)
        assert "a test" in kept.lines[-1].detail
        assert kept.looks() == []
    assert (kept.looks(), kept.shaped()) == (["traffic_control_made"], True)


def test_damaged_books_are_told_once_and_nothing_is_touched(kept):
    kept.confirm()
    kept.looks()
    kept.drifts()
    kept.place.ledger.file(Confirmed).write_text("{")
    assert (kept.looks(), kept.looks(), kept.shaped()) == (["traffic_control_books"], [], False)
    assert "confirmed.json: damaged" in kept.lines[-1].detail


def test_a_policy_that_was_released_is_not_made_again(kept):
    kept.confirm()
    kept.looks()
    making.release(kept.place.site)
    assert (kept.looks(), kept.shaped()) == ([], False)
    assert kept.standings[-1].id is None


@pytest.mark.parametrize(("on_exit", "shaped"), [("keep", True), ("release", False)])
def test_at_the_end_it_keeps_or_releases_and_the_books_stay(kept, on_exit, shaped):
    before = kept.place.devices()
    kept.confirm(on_exit=on_exit)
    kept.looks()
    ended = kept.vigil.end()
    assert (ended.released, ended.failure, kept.shaped()) == (not shaped, "", shaped)
    assert kept.place.ledger.read(Confirmed) is not None
    if not shaped:
        assert kept.place.devices() == before
    again = Kept(kept.place)
    assert again.looks() == ([] if shaped else ["traffic_control_made"])


def test_at_the_end_what_another_one_keeps_is_left_to_it(kept):
    kept.confirm(on_exit="release")
    vigil = Vigil(kept.place.site, alone=lambda: False)
    vigil.look(0.0)
    vigil.reports()
    assert vigil.end() == Ended(released=False)
    assert kept.shaped()
    assert [each.name for each in vigil.reports()] == ["traffic_control_left"]


def test_at_the_end_a_change_that_waits_is_its_watchers(kept):
    pending(kept)
    confirmed = kept.place.ledger.read(Confirmed)
    kept.place.ledger.write(replace(confirmed, policy=with_safety(confirmed.policy, on_exit="release")))
    kept.looks()
    ended = kept.vigil.end()
    assert (ended.released, kept.shaped()) == (False, True)
    assert "waits for its confirmation" in ended.failure


def test_readings_name_every_class_of_every_link(kept):
    kept.confirm()
    kept.looks()
    (link,) = kept.vigil.readings().links
    assert [each.name for each in link.classes] == ["realtime", "interactive", "batch", "background"]
    assert link.classes[0].rate == 20_000_000 / 8 / 4
    assert link.classes[0].ceiling == 20_000_000 / 8
