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
from qos.tc.tree import at_hook, foreign_filters, root_of, snapshot

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
    facts = kernel.facts()
    before = _by_present_name(baseline, netns, facts)
    named = set() if policy is None else {each.name for each in policy.interfaces if each.netns == netns}
    if policy is None or not named:
        return _given_back(netns, kernel, facts, before)
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
        before = _by_present_name(baseline, one.netns, one.facts)
        for link in one.observed.links:
            wanted, facts = one.desired.link(link.name), one.facts.get(link.name)
            if link.ifb_for is not None or wanted is None or facts is None:
                continue
            known = before.get(link.name)
            if known is None or known.index != facts.index:
                known = _untouched(one.netns, link, facts)
            kept.pop((one.netns, known.device), None)
            known = msgspec.structs.replace(known, device=link.name)
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
    return msgspec.structs.replace(before, links=(*before.links, *new))


def _by_present_name(
    baseline: Baseline, netns: str | None, facts: Mapping[str, LinkFacts]
) -> dict[str, DeviceBaseline]:
    """What each device had before us: one that was renamed took along all that was made on it."""
    here = [each for each in baseline.devices if each.netns == netns]
    known = {each.device for each in here}
    renamed = {each.index: each.name for each in facts.values() if each.name not in known}
    return {each.device if each.device in facts else renamed.get(each.index, each.device): each for each in here}


def _given_back(
    netns: str | None, kernel: Kernel, facts: dict[str, LinkFacts], before: Mapping[str, DeviceBaseline]
) -> Target:
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
    present = root_of(link)
    if present is not None and not is_our_qdisc(present):  # what somebody put in the place of ours since is to stay
        before = msgspec.structs.replace(before, root=None, qdiscs=(), classes=(), filters=())
    qdiscs = [] if before.root is None else [before.root, *before.qdiscs]
    if before.clsact:
        qdiscs += [each for each in link.qdiscs if isinstance(each.options, Clsact)]
    return LinkState(
        name=link.name,
        qdiscs=tuple(qdiscs),
        classes=before.classes,
        filters=before.filters,
        gso_max_size=before.gso_max_size,
    )


def _untouched(netns: str | None, link: LinkState, facts: LinkFacts) -> DeviceBaseline:
    """A clsact with nothing but ours below our root was made by us, though the books say nothing of it."""
    ours = any(map(is_our_qdisc, link.qdiscs))
    has_clsact = any(isinstance(each.options, Clsact) for each in link.qdiscs)
    clsact = has_clsact and (foreign_filters(link) or not ours)
    return DeviceBaseline(netns=netns, device=link.name, index=facts.index, clsact=clsact, gso_max_size=None, root=None)


def _with_what_goes(known: DeviceBaseline, link: LinkState, wanted: LinkState, facts: LinkFacts) -> DeviceBaseline:
    """What is not ours and is about to be replaced, remembered once."""
    if known.gso_max_size is None and wanted.gso_max_size is not None:
        known = msgspec.structs.replace(known, gso_max_size=facts.gso_max_size)
    root = root_of(link)
    if root is None or is_our_qdisc(root) or root_of(wanted) is None:
        return known
    (tree,) = snapshot(NetworkState(links=(link,)), NetworkState(links=(wanted,))).links
    return msgspec.structs.replace(
        known,
        root=root,
        qdiscs=tuple(each for each in tree.qdiscs if each != root and not isinstance(each.options, Clsact)),
        classes=tree.classes,
        filters=tuple(each for each in tree.filters if not at_hook(each)),
    )


def _joined(state: NetworkState, links: Iterable[LinkState]) -> NetworkState:
    known = {each.name for each in state.links}
    more = tuple(each for each in links if each.name not in known)
    return msgspec.structs.replace(state, links=state.links + more)
