# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from functools import partial

import pytest
from msgspec.structs import replace

from qos.tc.change import making
from qos.tc.change.ledger import Confirmed, Ledger, Pending
from qos.tc.change.lock import LockError, lock_file
from qos.tc.change.site import ChangeError, Site
from tests.fakes.fake_kernel import FakeDevice, FakeKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import FakePlace


@pytest.fixture
def place(tmp_path):
    return FakePlace(tmp_path)


def test_who_is_alone_holds_the_books(place):
    with place.site.alone("one"):
        impatient = Site(
            ledger=place.ledger, lock_of=place.lock_of, may_change=lambda: True, clock=iter((0, 9)).__next__
        )
        with pytest.raises(LockError, match=r"one .* is changing traffic control here"), impatient.alone("two"):
            pass


def test_who_may_not_change_the_kernel_does_not_touch_the_books(tmp_path):
    site = Site(ledger=Ledger(tmp_path / "qos"), lock_of=partial(lock_file, folder=tmp_path), may_change=lambda: False)
    with pytest.raises(ChangeError, match="CAP_NET_ADMIN; run it as root"), site.alone("x"):
        pass
    assert not (tmp_path / "qos").exists()


@pytest.mark.needs_root
def test_root_may(tmp_path):
    with Site(ledger=Ledger(tmp_path / "qos"), lock_of=partial(lock_file, folder=tmp_path)).alone("x"):
        pass


def test_kernels_come_with_their_locks(place):
    place.kernels["a"] = FakeKernel(FakeDevice("eth0"), netns="a")
    with place.site.kernels([None, "a"], "x") as kernels:
        assert kernels == place.kernels
        assert {each.name for each in place.ledger.folder.iterdir()} == {"netns-None.lock", "netns-a.lock"}
    with pytest.raises(LockError), place.site.kernels(["b"], "x"):
        pass
    assert (place.site.there("a"), place.site.there("b")) == (True, False)


def test_without_a_watcher_nothing_can_wait_for_a_confirmation(place):
    site = Site(ledger=place.ledger, lock_of=place.lock_of, open_kernel=place.site.open_kernel, probe=place.site.probe)
    with pytest.raises(ChangeError, match="apply without --confirm"):
        site.arm(making.apply(place.site, policy_of(), confirm_s=9).pending)


def test_the_books_say_only_what_still_holds(place):
    assert place.site.books().confirmed_id is None
    changed = making.apply(place.site, policy_of(), confirm_s=60)
    books = place.site.books()
    assert books.pending == changed.pending and books.pending is not None
    assert [each.device for each in books.baseline.devices] == ["eth0"]

    place.boot = "the next boot"
    assert (place.site.books().pending, place.site.books().baseline.devices) == (None, ())
    place.boot = "this boot"
    kept = making.confirm(place.site)
    place.ledger.write(changed.pending)
    assert place.site.books().pending is None
    place.ledger.write(replace(changed.pending, id="other"))
    assert place.site.books().pending is not None
    assert place.site.books().confirmed_id == kept.id == place.ledger.read(Confirmed).id
    assert place.ledger.read(Pending).id == "other"
