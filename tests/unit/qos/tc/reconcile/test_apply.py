# SPDX-License-Identifier: Apache-2.0
"""Applying on a kernel in memory: failures are put back, misdeeds found, and what cannot be put back is freed."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qos.tc.errors import KernelError
from qos.tc.reconcile.plan import Step, Verb, plan
from qos.tc.state import EGRESS_HOOK, ROOT, Bfifo, Bpf, Filter, Htb, LinkState, NetworkState, Qdisc, TcClass
from qos.tc.tree import is_our_qdisc
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.tc_applying import PROGRAMS, applied
from tests.fakes.tc_states import CLSACT_QDISC, alike, desired_states, foreign_part, htb_class, observed_states

BARE = NetworkState(links=(LinkState(name="eth0", gso_max_size=65536),))
TREE = LinkState(
    name="eth0",
    qdiscs=(Qdisc(0x51A0000, ROOT, Htb(0x24)), Qdisc(0x240000, 0x51A0024, Bfifo(9000)), CLSACT_QDISC),
    classes=(TcClass(0x51A0001, 0x51A0000, htb_class(9000)), TcClass(0x51A0024, 0x51A0001, htb_class(1000))),
    filters=(Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-1")),),
)
DESIRED = NetworkState(links=(TREE,))
WITHOUT_CLASS = NetworkState(links=(replace(TREE, qdiscs=(TREE.qdiscs[0], CLSACT_QDISC), classes=TREE.classes[:1]),))


def seen(kernel: FakeKernel) -> NetworkState:
    return kernel.observe(["eth0"])


def test_what_is_asked_is_made_and_asked_again_is_nothing() -> None:
    kernel = FakeKernel.of(BARE)
    outcome = applied(kernel, DESIRED)
    assert (outcome.failure, outcome.rolled_back, outcome.residual, outcome.unshaped) == (None, False, (), False)
    assert [each.verb for each in outcome.done] == [Verb.ADD] * 6
    assert alike(seen(kernel), gso=False) == alike(DESIRED, gso=False)
    assert applied(kernel, DESIRED).done == ()


@given(observed_states(), desired_states(), st.integers(1, 30))
def test_a_failure_at_any_call_puts_everything_back(
    observed: NetworkState, desired: NetworkState, failing: int
) -> None:
    kernel = FakeKernel.of(observed)
    before = seen(kernel)
    kernel.fails = lambda call: call == failing
    outcome = applied(kernel, desired)
    if kernel.calls < failing:
        assert outcome.failure is None
        return
    assert outcome.failure is not None
    assert "injected" in outcome.failure
    assert outcome.rolled_back
    sized = desired.links[0].gso_max_size is not None
    assert alike(seen(kernel), gso=sized) == alike(before, gso=sized)
    assert foreign_part(seen(kernel), root=True) == foreign_part(before, root=True)


@given(observed_states(), desired_states(), st.integers(1, 30))
def test_a_step_that_did_nothing_is_found_and_all_is_put_back(
    observed: NetworkState, desired: NetworkState, silent: int
) -> None:
    kernel = FakeKernel.of(observed)
    before = seen(kernel)
    kernel.misapplies = lambda call: call == silent
    outcome = applied(kernel, desired)
    if outcome.failure is None:
        assert plan(seen(kernel), desired) == ()
        return
    assert outcome.rolled_back
    assert alike(seen(kernel)) == alike(before)


@given(observed_states(), desired_states(), st.integers(1, 30), st.integers(1, 10))
def test_where_the_way_back_fails_our_roots_go(
    observed: NetworkState, desired: NetworkState, failing: int, refusals: int
) -> None:
    kernel = FakeKernel.of(observed)
    # Both ways back fail; then removing works again.
    last = failing + 1 + refusals
    kernel.fails = lambda call: failing <= call <= last
    outcome = applied(kernel, desired)
    if not outcome.unshaped:
        return
    assert outcome.failure is not None
    assert not outcome.rolled_back
    if kernel.calls > last:
        assert not any(is_our_qdisc(each) for link in seen(kernel).links for each in link.qdiscs)
    assert foreign_part(seen(kernel), root=False) == foreign_part(observed, root=False)


def test_unshaped_is_said_with_what_is_missing() -> None:
    kernel = FakeKernel.of(DESIRED)
    kernel.fails = lambda call: call in (2, 3, 4)  # the step, and both ways back
    outcome = applied(kernel, WITHOUT_CLASS)
    assert outcome.unshaped
    assert outcome.failure == "~ eth0 class 51a:1: quantum 0 -> 1514: fake kernel: injected"
    assert outcome.residual
    assert seen(kernel).links == (LinkState(name="eth0", gso_max_size=None),)


def test_a_class_is_drained_before_it_goes() -> None:
    kernel = FakeKernel.of(DESIRED)
    kernel.devices["eth0"].waiting = {0x51A0024: 50}
    kernel.sent_per_s = 100.0
    outcome = applied(kernel, WITHOUT_CLASS, drain_s=2.0)
    assert outcome.failure is None
    assert kernel.lost == 0
    assert 0.5 <= kernel.now < 0.6
    assert [each.loss.packets for each in outcome.done if each.verb is Verb.DELETE] == [0]


def test_draining_ends_and_what_is_lost_is_told() -> None:
    kernel = FakeKernel.of(DESIRED)
    kernel.devices["eth0"].waiting = {0x51A0024: 50}
    kernel.sent_per_s = 0.0
    outcome = applied(kernel, WITHOUT_CLASS, drain_s=2.0)
    assert kernel.lost == 50
    assert 2.0 <= kernel.now < 2.1
    assert [each.loss.packets for each in outcome.done if each.verb is Verb.DELETE] == [50]


def test_a_program_that_the_kernel_refuses_stops_before_the_first_step() -> None:
    def refused(_: bytes, name: str) -> int:
        raise KernelError(1, "CAP_BPF is needed", f"load {name}")

    kernel = FakeKernel.of(BARE)
    outcome = applied(kernel, DESIRED, load=refused)
    assert (outcome.done, outcome.rolled_back, kernel.calls) == ((), True, 0)
    assert outcome.failure == "load inferlane-1: CAP_BPF is needed"
    outcome = applied(kernel, DESIRED, programs={})
    assert "program inferlane-1" in str(outcome.failure)


def test_programs_are_closed_in_the_end() -> None:
    opened: list[int] = []

    def loaded(_: bytes, name: str) -> int:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[-1]

    applied(FakeKernel.of(BARE), DESIRED, load=loaded)
    assert len(opened) == 1
    with pytest.raises(OSError):
        os.fstat(opened[0])


@pytest.mark.parametrize("at", range(6))
def test_what_the_caller_raises_comes_back_after_all_is_undone(at: int) -> None:
    seen_steps: list[Step] = []

    def interrupted(step: Step) -> None:
        seen_steps.append(step)
        if len(seen_steps) > at:
            raise KeyboardInterrupt

    kernel = FakeKernel.of(BARE)
    with pytest.raises(KeyboardInterrupt):
        applied(kernel, DESIRED, before_step=interrupted)
    assert seen(kernel) == BARE


def test_the_steps_of_a_plan_that_no_longer_fits_fail_and_are_undone() -> None:
    kernel = FakeKernel.of(BARE)
    steps = plan(seen(kernel), DESIRED)
    applied(kernel, WITHOUT_CLASS)
    moved = seen(kernel)
    outcome = applied(kernel, DESIRED, steps=steps)
    assert outcome.rolled_back
    assert seen(kernel) == moved


def test_programs_of_the_way_back_are_needed_only_then() -> None:
    kernel = FakeKernel.of(DESIRED)
    other = replace(TREE, filters=(Filter(EGRESS_HOOK, 0x51A0, 3, 1, Bpf("inferlane-2")),))
    only_new = {"inferlane-2": PROGRAMS["inferlane-2"]}
    assert applied(kernel, NetworkState(links=(other,)), programs=only_new).failure is None


def test_a_device_that_goes_meanwhile_takes_all_with_it() -> None:
    kernel = FakeKernel.of(DESIRED)

    def unplugged(_: Step) -> None:
        kernel.devices.pop("eth0", None)

    outcome = applied(kernel, WITHOUT_CLASS, before_step=unplugged)
    assert outcome.failure is not None
    assert "No such device" in outcome.failure
    assert (outcome.rolled_back, outcome.residual, outcome.unshaped) == (True, (), False)


def test_a_table_is_made_and_removed() -> None:
    kernel = FakeKernel.of(BARE)
    assert applied(kernel, replace(DESIRED, table="classify_a")).failure is None
    assert kernel.table == "classify_a"
    assert applied(kernel, DESIRED).failure is None
    assert kernel.table == ""


def test_a_table_whose_text_is_not_at_hand_is_refused_before_the_first_step() -> None:
    kernel = FakeKernel.of(BARE)
    outcome = applied(kernel, replace(DESIRED, table="classify_z"))
    assert outcome.rolled_back and "classify_z: it is not among those at hand" in (outcome.failure or "")
    assert kernel.calls == 0


def test_where_nft_fails_on_the_way_back_too_the_roots_go_all_the_same() -> None:
    kernel = FakeKernel.of(replace(DESIRED, table="classify_a"))

    def broken(transaction: str) -> None:
        raise KernelError(0, "nft is gone", "table")

    kernel.fails = lambda call: call >= 3
    kernel.set_table = broken  # type: ignore[method-assign]
    outcome = applied(kernel, replace(WITHOUT_CLASS, table="classify_b"))
    assert outcome.failure is not None
    kernel.fails = lambda call: False
    # The table was never replaced, so without it failing again everything is put back.
    kernel = FakeKernel.of(replace(DESIRED, table="classify_a"))
    kernel.set_table = broken  # type: ignore[method-assign]
    outcome = applied(kernel, replace(WITHOUT_CLASS, table="classify_b"))
    assert outcome.rolled_back and "nft is gone" in (outcome.failure or "")
    assert kernel.table == "classify_a"
