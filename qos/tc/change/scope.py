# SPDX-License-Identifier: Apache-2.0
"""What a change reaches: the namespaces and devices of its policy, and those that an earlier one shaped.

A device that the policy no longer names is given back what it had before us, by the same plan as everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from qos.tc.capabilities import Capabilities, LinkFacts
from qos.tc.change.ledger import Baseline, DeviceBaseline
from qos.tc.design.compile import Note
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.backlogs import backlogs
from qos.tc.reconcile.plan import Step, plan
from qos.tc.reconcile.survey import netns_of, survey
from qos.tc.state import Clsact, LinkState, NetworkState, is_our_qdisc
from qos.tc.tree import foreign_filters, root_of

__all__ = ["Target", "namespaces", "target", "way_back", "with_baseline", "with_devices_of", "without_others"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace: what is there, what shall be, and the way."""

    netns: str | None
    facts: dict[str, LinkFacts]
    capabilities: Capabilities | None
    """None where nothing is to be made, only given back."""
    observed: NetworkState
    desired: NetworkState
    steps: tuple[Step, ...]
    programs: dict[str, bytes]
    labels: dict[tuple[str, int], str]
    notes: tuple[Note, ...]


def namespaces(policy: LinkPolicy | None, baseline: Baseline) -> tuple[str | None, ...]:
    """All that the change reaches, the policy's first."""
    named = () if policy is None else netns_of(policy)
    return tuple(dict.fromkeys([*named, *(each.netns for each in baseline.devices)]))


def target(
    policy: LinkPolicy | None,
    netns: str | None,
    kernel: Kernel,
    baseline: Baseline,
    probe: Callable[[str | None], Capabilities],
) -> Target:
    """What the policy asks of this namespace. policy None: to give everything back."""
    before = {each.device: each for each in baseline.devices if each.netns == netns}
    named = set() if policy is None else {each.name for each in policy.interfaces if each.netns == netns}
    if policy is None or not named:
        return _given_back(netns, kernel, before)
    surveyed = survey(policy, netns, kernel, probe(netns))
    facts, extra = surveyed.facts, before.keys() - named
    observed, desired, steps = surveyed.observed, surveyed.compiled.desired, surveyed.steps
    if extra & facts.keys():
        others = kernel.observe(extra & facts.keys())
        observed = _joined(observed, others.links)
        desired = _joined(desired, _originals(others, before))
        steps = plan(observed, desired, backlogs(kernel, facts.keys() & {each.name for each in observed.links}))
    return Target(
        netns=netns,
        facts=surveyed.facts,
        capabilities=surveyed.capabilities,
        observed=observed,
        desired=desired,
        steps=steps,
        programs=surveyed.compiled.programs,
        labels=surveyed.compiled.labels,
        notes=surveyed.compiled.notes,
    )


def with_devices_of(baseline: Baseline, policy: LinkPolicy) -> Baseline:
    """With the policy's devices as if nothing but ours had ever been on them: for `release` where books are lost."""
    known = {(each.netns, each.device) for each in baseline.devices}
    more = [
        DeviceBaseline(netns=each.netns, device=each.name, index=0, clsact=False, gso_max_size=None, root=None)
        for each in policy.interfaces
        if (each.netns, each.name) not in known
    ]
    return Baseline(boot_id=baseline.boot_id, devices=(*baseline.devices, *more))


def with_baseline(baseline: Baseline, targets: Iterable[Target]) -> Baseline:
    """The baseline with what these targets are about to change for the first time."""
    kept = {(each.netns, each.device): each for each in baseline.devices}
    for one in targets:
        for link in one.observed.links:
            wanted, facts = one.desired.link(link.name), one.facts.get(link.name)
            if link.ifb_for is not None or wanted is None or facts is None:
                continue
            known = kept.get((one.netns, link.name))
            if known is None or known.index != facts.index:
                known = _untouched(one.netns, link, facts)
            kept[one.netns, link.name] = _with_what_goes(known, link, wanted, facts)
    return Baseline(boot_id=baseline.boot_id, devices=tuple(kept.values()))


def without_others(baseline: Baseline, policy: LinkPolicy) -> Baseline:
    """Only the policy's devices: the others were given back what they had."""
    named = {(each.netns, each.name) for each in policy.interfaces}
    devices = tuple(each for each in baseline.devices if (each.netns, each.device) in named)
    return Baseline(boot_id=baseline.boot_id, devices=devices)


def way_back(before: NetworkState | None, found: NetworkState) -> NetworkState:
    """What to come back to: what a change that was interrupted here had found, else what is found now."""
    if before is None:
        return found
    names = {each.name for each in before.links}
    # An IFB that the interrupted change made for a device that it had found without one was not there before.
    new = [each for each in found.links if each.name not in names and each.ifb_for not in names]
    return NetworkState(netns=found.netns, links=(*before.links, *new))


def _given_back(netns: str | None, kernel: Kernel, before: Mapping[str, DeviceBaseline]) -> Target:
    facts = kernel.facts()
    observed = kernel.observe(before.keys() & facts.keys())
    desired = NetworkState(netns=netns, links=tuple(_originals(observed, before)))
    waiting = backlogs(kernel, {each.name for each in observed.links})
    steps = plan(observed, desired, waiting, to_snapshot=True)
    return Target(
        netns=netns,
        facts=facts,
        capabilities=None,
        observed=observed,
        desired=desired,
        steps=steps,
        programs={},
        labels={},
        notes=(),
    )


def _originals(observed: NetworkState, before: Mapping[str, DeviceBaseline]) -> Collection[LinkState]:
    """Each device as it was before us; our IFBs are not among them, and go."""
    return [_as_before(each, before[each.name]) for each in observed.links if each.name in before]


def _as_before(link: LinkState, before: DeviceBaseline) -> LinkState:
    qdiscs = [] if before.root is None else [before.root]
    if before.clsact:
        qdiscs += [each for each in link.qdiscs if isinstance(each.options, Clsact)]
    return LinkState(name=link.name, qdiscs=tuple(qdiscs), gso_max_size=before.gso_max_size)


def _untouched(netns: str | None, link: LinkState, facts: LinkFacts) -> DeviceBaseline:
    """A clsact with nothing but ours below our root was made by us, though the books say nothing of it."""
    ours = any(map(is_our_qdisc, link.qdiscs))
    has_clsact = any(isinstance(each.options, Clsact) for each in link.qdiscs)
    clsact = has_clsact and (foreign_filters(link) or not ours)
    return DeviceBaseline(netns=netns, device=link.name, index=facts.index, clsact=clsact, gso_max_size=None, root=None)


def _with_what_goes(known: DeviceBaseline, link: LinkState, wanted: LinkState, facts: LinkFacts) -> DeviceBaseline:
    """What is not ours and is about to be replaced, remembered once."""
    gso_max_size, root = known.gso_max_size, root_of(link)
    if gso_max_size is None and wanted.gso_max_size is not None:
        gso_max_size = facts.gso_max_size
    if root is None or is_our_qdisc(root) or root_of(wanted) is None:
        root = known.root
    return msgspec.structs.replace(known, gso_max_size=gso_max_size, root=root)


def _joined(state: NetworkState, links: Iterable[LinkState]) -> NetworkState:
    known = {each.name for each in state.links}
    return NetworkState(netns=state.netns, links=(*state.links, *(each for each in links if each.name not in known)))
