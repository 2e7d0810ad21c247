# SPDX-License-Identifier: Apache-2.0
"""From any state of ours to any other on this machine's kernel, with a failure on the way that is undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.plan import plan, snapshot
from qos.tc.state import U32, Bfifo, Cake, Flower, FqCodel, HtbClass, NetworkState
from tests.fakes import namespaces
from tests.fakes.failing_kernel import FailingKernel
from tests.fakes.namespaces import Host
from tests.fakes.tc_applying import TABLES
from tests.fakes.tc_states import desired_states

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="module")
def any_host() -> Iterator[Host]:
    with namespaces.alone("tcapply") as made:
        yield made


def as_every_kernel_can(state: NetworkState, host: Host) -> NetworkState:
    """Without the kinds that not every kernel has, and with rates that it takes."""

    def options(each: Any) -> Any:
        if isinstance(each, HtbClass):
            return replace(each, rate=each.rate * 1000, ceil=each.ceil * 1000)
        return Bfifo(77_000) if isinstance(each, FqCodel) else Bfifo(99_000) if isinstance(each, Cake) else each

    return replace(
        state,
        netns=host.name,
        links=tuple(
            replace(
                link,
                qdiscs=tuple(replace(each, options=options(each.options)) for each in link.qdiscs),
                classes=tuple(replace(each, options=options(each.options)) for each in link.classes),
                # u32's numbers are of a table that the kernel chooses.
                filters=tuple(
                    replace(each, handle=0) if isinstance(each.options, U32) else each
                    for each in link.filters
                    if not isinstance(each.options, Flower)
                ),
            )
            for link in state.links
        ),
    )


@settings(max_examples=40, phases=[Phase.generate])
@given(desired_states(), desired_states(), st.integers(1, 25))
def test_any_state_becomes_any_other(
    any_host: Host, one_state: NetworkState, other_state: NetworkState, failing: int
) -> None:
    first, second = as_every_kernel_can(one_state, any_host), as_every_kernel_can(other_state, any_host)
    programs = {name: bytes.fromhex("b7000000ffffffff9500000000000000") for name in ("inferlane-1", "inferlane-2")}
    programs |= TABLES
    with FailingKernel(any_host.name) as kernel:
        outcome = apply(kernel, first, programs=programs)
        assert outcome.failure is None
        before = snapshot(kernel.observe(["eth0"]), second)
        kernel.fails = [kernel.changes + failing]
        outcome = apply(kernel, second, programs=programs)
        if outcome.failure is not None:
            assert "injected" in outcome.failure
            assert outcome.rolled_back
            assert plan(kernel.observe(["eth0"]), before, to_snapshot=True) == ()
        assert apply(kernel, second, programs=programs).failure is None
        assert plan(kernel.observe(["eth0"]), second) == ()
