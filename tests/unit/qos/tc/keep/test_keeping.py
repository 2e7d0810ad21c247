# SPDX-License-Identifier: Apache-2.0
"""What the keeper decides: whose turn it is, when it looks, and when it stops repairing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.settings import BUILT_IN_CLASSES
from qos.tc.change.ledger import Confirmed, Pending
from qos.tc.keep.keeping import (
    DEBOUNCE_S,
    FULL_CHECK_S,
    GRACE_S,
    WINDOW_S,
    Action,
    Duty,
    RepairBudget,
    Timetable,
    action,
    duty,
    in_reach,
)
from qos.tc.policy import LinkPolicy, link_policy
from qos.tc.settings import InterfaceSettings, SafetySettings

LINKS = [
    InterfaceSettings(name="eth0", egress=10**7),
    InterfaceSettings(name="eth1", egress=10**7),
    InterfaceSettings(name="eth0", netns="blue", egress=10**7),
]
POLICY: LinkPolicy = link_policy(BUILT_IN_CLASSES, LINKS, (), SafetySettings())
CONFIRMED = Confirmed(id="c0", policy=POLICY, programs={})
PENDING = Pending(
    id="p0",
    policy=POLICY,
    previous="c0",
    snapshots=(),
    programs={},
    classifiers=(),
    boot_id="boot",
    deadline=100.0,
    confirm_s=60.0,
    applier=1,
    done=True,
)


def of(pending: Pending | None, *, boottime: float = 50.0, confirmed: Confirmed | None = CONFIRMED) -> Duty:
    return duty(confirmed, pending, boot_id="boot", boottime=boottime)


def test_without_a_change_under_way_what_is_confirmed_is_kept():
    assert of(None) is Duty.KEEP
    assert of(None, confirmed=None) is Duty.IDLE


@pytest.mark.parametrize(
    ("boottime", "turn"),
    [(0.0, Duty.HANDS_OFF), (100.0 + GRACE_S - 0.1, Duty.HANDS_OFF), (100.0 + GRACE_S, Duty.REVERT)],
)
@pytest.mark.parametrize("confirmed", [CONFIRMED, None])
def test_a_change_is_its_watchers_until_it_should_be_undone(boottime, turn, confirmed):
    assert of(PENDING, boottime=boottime, confirmed=confirmed) is turn


def test_a_change_of_another_boot_is_gone_and_one_without_a_watcher_has_lost_its_applier():
    assert of(msgspec.structs.replace(PENDING, boot_id="earlier")) is Duty.REVERT
    assert of(msgspec.structs.replace(PENDING, deadline=None, done=False)) is Duty.REVERT


def decided(*, changed: str = "", unmade: str = "", drift: str = "repair", most: int = 5, spent: int = 0) -> Action:
    budget = RepairBudget(most)
    for _ in range(spent):
        budget.spend(0.0)
    return action(changed=changed.split(), unmade=unmade.split(), drift=drift, budget=budget, now=1.0)


def test_what_is_as_promised_needs_nothing():
    assert decided(drift="off") is decided(drift="report") is decided() is Action.NOTHING


@pytest.mark.parametrize("drift", ["off", "report", "repair"])
def test_a_new_device_is_shaped_whatever_becomes_of_drift_and_costs_no_repair(drift):
    assert decided(changed="eth0", unmade="eth0", drift=drift, spent=5) is Action.APPLY


def test_what_somebody_changed_is_repaired_reported_or_left_as_the_config_says():
    assert decided(changed="eth0") is Action.REPAIR
    assert decided(changed="eth0 eth1", unmade="eth1") is Action.REPAIR
    assert decided(changed="eth0", drift="report") is Action.REPORT
    assert decided(changed="eth0", drift="off") is Action.NOTHING


def test_when_the_repairs_are_spent_it_only_reports():
    assert decided(changed="eth0", spent=4) is Action.REPAIR
    assert decided(changed="eth0", spent=5) is Action.REPORT
    assert decided(changed="eth0", most=0) is Action.REPORT


@given(st.integers(0, 10), st.lists(st.floats(0, 2000), max_size=60))
def test_no_ten_minutes_see_more_repairs_than_allowed(most, instants):
    budget, made = RepairBudget(most), []
    for now in sorted(instants):
        if budget.left(now) > 0:
            budget.spend(now)
            made.append(now)
    for start in made:
        assert sum(start <= each < start + WINDOW_S for each in made) <= most


def test_repairs_come_back_after_the_window():
    budget = RepairBudget(1)
    budget.spend(10.0)
    assert (budget.left(10.0 + WINDOW_S - 0.1), budget.left(10.0 + WINDOW_S)) == (0, 1)


def test_it_looks_at_once_then_every_so_often():
    timetable = Timetable(5.0)
    assert timetable.next() == 5.0
    timetable.looked(6.0)
    assert timetable.next() == 6.0 + FULL_CHECK_S
    timetable.looked(7.0, again_s=1.0)
    assert timetable.next() == 8.0
    timetable.at_once(7.5)
    assert timetable.next() == 7.5


def test_it_waits_for_a_pause_in_the_messages_but_not_for_ever():
    timetable = Timetable(0.0)
    timetable.looked(0.0)
    timetable.touched(1.0)
    assert timetable.next() == 1.0 + DEBOUNCE_S
    now = 1.0
    while timetable.next() > now:
        now += 0.1
        timetable.touched(now)
    assert 2.5 < now < 3.5
    timetable.looked(now)
    assert timetable.next() == now + FULL_CHECK_S


def test_after_a_failure_messages_are_not_heeded_for_a_while():
    timetable = Timetable(0.0)
    timetable.looked(0.0, rest_s=10.0)
    timetable.touched(1.0)
    assert timetable.next() == 10.0
    timetable.touched(12.0)
    assert timetable.next() < 12.0 + DEBOUNCE_S + 1e-9


@given(st.lists(st.sampled_from(["touched", "looked"]), max_size=30), st.floats(0.01, 5.0))
def test_it_never_waits_longer_than_a_full_check(events, step):
    timetable, now = Timetable(0.0), 0.0
    for each in events:
        now += step
        getattr(timetable, each)(now)
        assert timetable.next() <= now + FULL_CHECK_S + 1e-9


def test_what_is_out_of_reach_is_named_and_the_rest_stays():
    here, missing = in_reach(POLICY, None, {"lo", "eth1"})
    assert ([each.name for each in here.interfaces], missing) == (["eth1"], ("eth0",))
    assert here.classes == POLICY.classes
    there, missing = in_reach(POLICY, "blue", {"eth0"})
    assert ([(each.name, each.netns) for each in there.interfaces], missing) == ([("eth0", "blue")], ())
