# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace as with_fields

import pytest

from qos.tc.change import making
from qos.tc.change.ledger import Baseline, Confirmed, LastRollback, LedgerError, Pending
from qos.tc.change.lock import LockError, locked
from qos.tc.change.plan_file import PlanFileError, Planned, seen
from qos.tc.change.site import ChangeError
from qos.tc.state import ROOT, Qdisc, Unread
from tests.fakes.fake_kernel import FakeDevice, FakeKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import FakePlace

SLOW, FAST, BOTH = policy_of(), policy_of({"egress": "50mbit"}), policy_of({}, {"name": "eth1"})


@pytest.fixture
def place(tmp_path):
    return FakePlace(tmp_path)


def refused(function, *arguments, **named) -> str:
    with pytest.raises(ChangeError) as error:
        function(*arguments, **named)
    return str(error.value)


def test_what_is_applied_stands_and_a_second_time_there_is_nothing_to_do(place):
    changed = making.apply(place.site, SLOW)

    assert changed.steps > 5 and changed.pending is None
    assert place.pending() is None
    kept = place.ledger.read(Confirmed)
    assert (kept.id, kept.policy, kept.earlier.policy) == (changed.id, SLOW, None)
    calls = place.kernel.calls
    assert making.apply(place.site, SLOW).steps == 0
    assert [len(each.steps) for each in making.survey(place.site, SLOW)] == [0]
    assert place.kernel.calls == calls
    assert place.ledger.read(Confirmed).earlier.policy is None


def test_the_books_are_written_and_the_watcher_armed_before_the_first_step(place):
    found = []

    def arm(pending):
        found.append((place.kernel.calls, place.pending() == pending, place.ledger.read(Baseline) is not None))

    changed = making.apply(with_fields(place.site, arm=arm), SLOW, confirm_s=120)

    assert found == [(0, True, True)]
    assert place.befores[0] == "arm the watcher" and place.befores[-1] == "confirm"
    assert (changed.pending.done, changed.pending.deadline) == (True, 1120)
    assert place.pending() == changed.pending
    assert place.ledger.read(Confirmed) is None


def test_without_a_watcher_nothing_is_touched(place):
    before = place.devices()

    def arm(pending):
        raise ChangeError("no watcher")

    assert refused(making.apply, with_fields(place.site, arm=arm), SLOW, confirm_s=120) == "no watcher"
    assert (place.devices(), place.pending(), place.kernel.calls) == (before, None, 0)


def test_one_change_at_a_time(place):
    first = making.apply(place.site, SLOW, confirm_s=120)
    place.now += 20
    before = place.devices()

    message = refused(making.apply, place.site, FAST)

    assert message == (
        f"change {first.id} waits for its confirmation (100 s left); `inferlane qos confirm` keeps it, "
        "`inferlane qos rollback` undoes it: then apply this"
    )
    assert refused(making.apply, place.site, SLOW) == message
    assert refused(making.apply, place.site, FAST, confirm_s=10) == message
    assert (place.devices(), place.pending()) == (before, first.pending)


def test_the_same_change_again_gets_more_time(place):
    first = making.apply(place.site, SLOW, confirm_s=120)
    place.now += 100
    again = making.apply(place.site, SLOW, confirm_s=300)

    assert (again.id, again.pending.deadline, len(place.armed)) == (first.id, 1400, 2)
    assert place.pending() == again.pending


def test_confirmed_in_time_it_stands(place):
    making.apply(place.site, SLOW)
    first = place.ledger.read(Confirmed)
    changed = making.apply(place.site, FAST, confirm_s=120)
    place.now += 119

    kept = making.confirm(place.site)

    assert (kept.id, kept.policy, kept.earlier.id) == (changed.id, FAST, first.id)
    assert place.ledger.read(Confirmed) == kept and place.pending() is None


def test_nothing_to_confirm(place):
    assert refused(making.confirm, place.site) == "nothing waits for a confirmation"
    place.ledger.write(LastRollback(id="x", at="yesterday", why="nobody confirmed it within 5 s", failure=None))
    assert refused(making.confirm, place.site) == (
        "nothing waits for a confirmation; change x was put back at yesterday, because nobody confirmed it within 5 s"
    )


def test_a_confirmation_that_comes_too_late(place):
    changed = making.apply(place.site, SLOW, confirm_s=10)
    place.now += 12
    assert refused(making.confirm, place.site) == (
        f"change {changed.id}: its time to confirm ended 2 s ago, it is being put back; apply it again, with more "
        "time: --confirm 300s"
    )
    assert place.ledger.read(Confirmed) is None


def test_what_was_interrupted_is_not_confirmed(place):
    making.apply(place.site, SLOW, confirm_s=10)
    place.left_unfinished()
    assert "an apply was interrupted" in refused(making.confirm, place.site)


def test_a_pending_change_is_undone(place):
    before = place.devices()
    changed = making.apply(place.site, BOTH, confirm_s=120)
    assert place.devices() != before

    assert making.roll_back(place.site) == f"change {changed.id} is undone: everything is as it was before it"

    assert place.devices() == before
    assert place.pending() is None
    assert refused(making.roll_back, place.site).startswith("there is nothing to go back to")


def test_back_to_the_policy_before_and_not_to_and_fro(place):
    making.apply(place.site, SLOW)
    slow = place.devices()
    fast = making.apply(place.site, FAST)

    assert making.roll_back(place.site) == f"the policy before {fast.id} stands again"

    assert place.devices() == slow
    assert place.ledger.read(Confirmed).policy == SLOW
    assert refused(making.roll_back, place.site).startswith("there is nothing to go back to")


def test_before_the_first_policy_there_was_nothing_of_ours(place):
    before = place.devices()
    making.apply(place.site, SLOW)
    assert making.roll_back(place.site).endswith("was the first: all that was made is removed")
    assert place.devices() == before
    assert place.ledger.read(Confirmed) is None


def test_a_failure_in_one_namespace_puts_all_of_them_back(place):
    place.kernels["other"] = FakeKernel(FakeDevice("eth0"), netns="other")
    policy = policy_of({}, {"netns": "other"})
    before = place.devices()
    place.kernels["other"].fails = lambda call: call == 3

    message = refused(making.apply, place.site, policy, confirm_s=60)

    assert message.startswith("failed in namespace other: ")
    assert "injected; everything was put back, nothing is changed" in message
    assert place.kernel.calls > 5
    assert (place.devices(), place.pending(), place.ledger.read(Confirmed)) == (before, None, None)


@pytest.mark.parametrize("call", range(1, 14))
def test_a_failure_at_any_step_changes_nothing(place, call):
    making.apply(place.site, SLOW)
    books, before, calls = place.ledger.read(Confirmed), place.devices(), place.kernel.calls
    place.kernel.fails = lambda now: now == calls + call

    message = refused(making.apply, place.site, BOTH)

    assert "everything was put back" in message
    assert (place.devices(), place.pending(), place.ledger.read(Confirmed)) == (before, None, books)


def test_where_not_even_the_way_back_works_it_is_told(place):
    place.kernel.fails = lambda call: call > 4
    message = refused(making.apply, place.site, SLOW)
    assert "injected; nor did the way back work, so our queues were removed and the kernel's default is" in message
    assert "back; not put back: " in message


def test_the_interrupt_key_undoes_what_was_begun(place):
    before = place.devices()

    def stop(step):
        if place.kernel.calls == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        making.apply(with_fields(place.site, before=stop), SLOW)
    assert (place.devices(), place.pending()) == (before, None)


def test_after_an_interruption_the_first_state_is_what_to_come_back_to(place):
    before = place.devices()
    making.apply(place.site, SLOW, confirm_s=120)
    place.left_unfinished()
    interrupted = place.pending()

    changed = making.apply(place.site, BOTH, confirm_s=60)

    assert place.pending().id == changed.id != interrupted.id
    making.roll_back(place.site)
    assert place.devices() == before


def test_an_interruption_that_left_all_made_is_finished_by_applying_again(place):
    making.apply(place.site, SLOW, confirm_s=120)
    place.left_unfinished()
    assert making.apply(place.site, SLOW).steps == 0
    assert place.pending() is None and place.ledger.read(Confirmed).policy == SLOW


def test_a_device_that_is_no_longer_named_gets_back_what_it_had(place):
    place.kernel.devices["eth1"].gso_max_size = 40_000
    before = place.devices()
    making.apply(place.site, BOTH)
    assert place.kernel.devices["eth1"].gso_max_size < 40_000

    making.apply(place.site, SLOW)

    assert place.devices()[None, "eth1"] == before[None, "eth1"]
    assert [each.device for each in place.ledger.read(Baseline).devices] == ["eth0"]
    making.roll_back(place.site)
    assert place.kernel.devices["eth1"].qdiscs
    making.release(place.site)
    assert place.devices() == before


def test_release_gives_back_an_adopted_root_and_leaves_no_books(place):
    strange = Qdisc(0x10000, ROOT, Unread("sfq", b"\1\2\3\4"))
    place.kernel.devices["eth0"].qdiscs = {strange.handle: strange}
    before = place.devices()
    making.apply(place.site, policy_of({"adopt": True, "ingress": "10mbit"}))
    making.apply(place.site, policy_of({"adopt": True}))
    assert place.devices() != before

    assert making.release(place.site) > 0

    assert place.devices() == before
    assert [place.ledger.read(kind) for kind in (Confirmed, Pending, Baseline, LastRollback)] == [None] * 4
    assert making.release(place.site) is None
    assert making.release(place.site, SLOW) == 0


def test_a_namespace_that_is_gone_took_all_with_it(place):
    place.kernels["other"] = FakeKernel(FakeDevice("eth0"), netns="other")
    making.apply(place.site, policy_of({}, {"netns": "other"}), confirm_s=60)
    del place.kernels["other"]
    assert making.roll_back(place.site).endswith("everything is as it was before it")
    assert place.kernel.devices["eth0"].qdiscs == {}
    making.apply(place.site, SLOW)
    assert making.release(place.site) > 0


def test_a_misspelt_namespace_is_told_before_anything_is_written(place):
    with pytest.raises(LockError, match="no network namespace is named nowhere"):
        making.apply(place.site, policy_of({}, {"netns": "nowhere"}))
    assert place.kernel.calls == 0 and place.pending() is None


def test_release_without_books_removes_what_is_ours(place):
    making.apply(place.site, SLOW)
    for kind in (Confirmed, Baseline):
        place.ledger.remove(kind)
    making.release(place.site, SLOW)
    assert place.kernel.devices["eth0"].qdiscs == {}


def test_the_watcher_puts_back_what_nobody_confirmed(place):
    before = place.devices()
    changed = making.apply(place.site, SLOW, confirm_s=10)
    assert not making.put_back_unconfirmed(place.site, changed.pending)
    place.now += 10

    assert making.put_back_unconfirmed(place.site, changed.pending)

    assert (place.devices(), place.pending()) == (before, None)
    last = place.ledger.read(LastRollback)
    assert (last.id, last.why, last.failure) == (changed.id, "nobody confirmed it within 10 s", None)
    assert not making.put_back_unconfirmed(place.site, changed.pending)
    making.apply(place.site, SLOW)
    assert place.ledger.read(LastRollback) is None


def test_the_watcher_lets_be_what_was_confirmed_or_replaced(place):
    changed = making.apply(place.site, SLOW, confirm_s=10)
    making.confirm(place.site)
    made = place.devices()
    place.now += 10
    assert not making.put_back_unconfirmed(place.site, changed.pending)
    place.ledger.write(changed.pending)  # as if `confirm` had died before it forgot this
    assert not making.put_back_unconfirmed(place.site, changed.pending)
    assert (place.devices(), place.pending()) == (made, None)


def test_damaged_books_are_no_confirmation(place):
    before = place.devices()
    changed = making.apply(place.site, SLOW, confirm_s=10)
    place.ledger.file(Pending).write_bytes(b"{")
    place.now += 10
    with pytest.raises(LedgerError):
        making.confirm(place.site)
    assert making.put_back_unconfirmed(place.site, changed.pending)
    assert place.devices() == before


def test_a_restart_of_the_machine_ends_what_was_pending(place):
    making.apply(place.site, SLOW, confirm_s=120)
    place.boot = "the next boot"
    assert refused(making.confirm, place.site) == "nothing waits for a confirmation"
    assert making.apply(place.site, FAST).pending is None


def test_a_plan_is_applied_as_it_was_read_or_not_at_all(place):
    targets = making.survey(place.site, SLOW)
    planned = Planned(
        conf="g.yaml",
        policy=SLOW,
        confirmed=None,
        seen=tuple(seen(each.observed, each.desired) for each in targets),
        steps=(),
    )
    place.kernel.devices["eth0"].gso_max_size = 40_000
    with pytest.raises(PlanFileError, match="the kernel's state moved since this plan was made"):
        making.apply(place.site, SLOW, planned=planned)
    place.kernel.devices["eth0"].gso_max_size = 65536
    assert making.apply(place.site, SLOW, planned=planned).steps > 5
    with pytest.raises(PlanFileError, match="another policy was confirmed"):
        making.apply(place.site, SLOW, planned=planned)


@pytest.mark.parametrize("verb", ["apply", "confirm", "roll_back", "release"])
def test_who_may_not_change_the_kernel_is_told_so(place, verb):
    site = with_fields(place.site, may_change=lambda: False)
    message = refused(getattr(making, verb), site, *([SLOW] if verb == "apply" else []))
    assert message == "changing traffic control needs the capability CAP_NET_ADMIN; run it as root"
    assert not place.ledger.folder.exists()


def test_the_second_of_two_waits_and_is_told_of_the_first(place):
    times = iter(range(100))
    site = with_fields(place.site, clock=lambda: next(times), sleep=lambda _: None)
    with (
        locked([place.ledger.lock], who="inferlane qos apply"),
        pytest.raises(LockError, match=r"inferlane qos apply .* is changing traffic control here"),
    ):
        making.apply(site, SLOW)
    assert place.kernel.calls == 0


def test_books_that_are_damaged_touch_nothing(place):
    making.apply(place.site, SLOW)
    calls = place.kernel.calls
    place.ledger.file(Confirmed).write_text(json.dumps({"format": 9}))
    for verb in (making.confirm, making.roll_back, making.release):
        with pytest.raises(LedgerError, match=r"confirmed.json: has format 9"):
            verb(place.site)
    with pytest.raises(LedgerError):
        making.apply(place.site, FAST)
    assert place.kernel.calls == calls
