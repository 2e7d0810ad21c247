# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from qos.tc.change import making
from qos.tc.change.everywhere import make_everywhere, put_back, put_back_everywhere
from tests.fakes.fake_kernel import FakeDevice, FakeKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import FakePlace

POLICY = policy_of({}, {"netns": "a"})


@pytest.fixture
def place(tmp_path):
    made = FakePlace(tmp_path)
    made.kernels["a"] = FakeKernel(FakeDevice("eth0"), netns="a")
    return made


def test_each_namespace_gets_its_steps_and_each_step_is_told(place):
    targets = making.survey(place.site, POLICY)
    assert make_everywhere(place.site, targets, place.kernels) == ""
    assert len(place.befores) == sum(len(each.steps) for each in targets)
    assert [each.steps for each in making.survey(place.site, POLICY)] == [(), ()]


def test_the_first_that_fails_ends_it_and_is_named(place):
    place.kernels[None].fails = lambda call: call == 2
    targets = making.survey(place.site, POLICY)
    failure = make_everywhere(place.site, targets, place.kernels)
    assert failure.startswith("failed: + eth0 root 51a:") and failure.endswith("injected")
    assert place.kernels["a"].calls == 0


def test_one_that_cannot_be_put_back_does_not_keep_the_others_from_it(place):
    before = place.devices()
    pending = making.apply(place.site, POLICY, confirm_s=60).pending
    place.kernels[None].fails = lambda call: True
    failure = put_back_everywhere(place.site, pending)
    assert failure.startswith("not put back: ") and "namespace" not in failure
    assert place.devices()["a", "eth0"] == before["a", "eth0"]
    place.kernels[None].fails = lambda call: False
    assert put_back_everywhere(place.site, pending) == ""
    assert place.devices() == before


def test_what_is_gone_took_all_with_it(place):
    pending = making.apply(place.site, POLICY, confirm_s=60).pending
    del place.kernels[None].devices["eth0"]
    assert put_back(place.site, pending, {None: place.kernels[None]}) == ""


def test_the_table_that_was_there_is_put_back(place):
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    making.apply(place.site, policy_of(flows=(early,)))
    table = place.kernel.table
    assert table
    pending = making.apply(place.site, policy_of(flows=({**early, "src": "10.1.0.0/16"},)), confirm_s=60).pending
    assert place.kernel.table not in ("", table)
    assert put_back_everywhere(place.site, pending) == ""
    assert place.kernel.table == table
