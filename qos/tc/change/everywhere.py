# SPDX-License-Identifier: Apache-2.0
"""In every namespace of a change: make its steps, or put back what was there before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from qos.tc.change.ledger import Pending
from qos.tc.change.scope import Target
from qos.tc.change.site import Site
from qos.tc.reconcile.apply import Outcome
from qos.tc.reconcile.apply import apply as make_steps
from qos.tc.reconcile.commands import describe

if TYPE_CHECKING:
    from qos.tc.kernel.netlink import Kernel

__all__ = ["make_everywhere", "put_back", "put_back_everywhere"]


def make_everywhere(
    site: Site,
    targets: Sequence[Target],
    kernels: Mapping[str | None, Kernel],
    programs: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """What went wrong; "" where everything is made. programs: of the classifiers that may have to come back."""
    for each in targets:
        outcome = make_steps(
            kernels[each.netns],
            each.desired,
            programs={**programs, **each.programs},
            steps=each.steps,
            to_snapshot=each.capabilities is None,
            before_step=lambda step: site.before(describe(step, {})),
            clock=site.clock,
            sleep=site.sleep,
        )
        if outcome.failure:
            return f"failed{_where(each.netns)}: {_told(outcome)}"
    return ""


def put_back_everywhere(site: Site, pending: Pending) -> str:
    names = [each.netns for each in pending.snapshots if site.there(each.netns)]
    with site.kernels(names, "inferlane qos rollback") as kernels:
        return put_back(site, pending, kernels)


def put_back(site: Site, pending: Pending, kernels: Mapping[str | None, Kernel]) -> str:
    """What could not be put back; "" where everything is as it was. A namespace that is gone took all with it."""
    failures = []
    for state in pending.snapshots:
        if (kernel := kernels.get(state.netns)) is None:
            continue
        present = kernel.facts().keys()
        links = tuple(each for each in state.links if (each.ifb_for or each.name) in present)
        wanted = msgspec.structs.replace(state, links=links)
        outcome = make_steps(
            kernel, wanted, programs=pending.programs, to_snapshot=True, clock=site.clock, sleep=site.sleep
        )
        failures += [f"not put back{_where(state.netns)}: {_told(outcome)}"] if outcome.failure else []
    return "; ".join(failures)


def _told(outcome: Outcome) -> str:
    if outcome.unshaped:
        return (
            f"{outcome.failure}; nor did the way back work, so our queues were removed and the kernel's default is back"
        )
    return str(outcome.failure)


def _where(netns: str | None) -> str:
    return "" if netns is None else f" in namespace {netns}"
