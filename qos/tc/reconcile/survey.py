# SPDX-License-Identifier: Apache-2.0
"""One namespace looked at for a policy: what is there, what shall be, and the steps between. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from qos.schema import did_you_mean
from qos.tc.capabilities import Capabilities, LinkFacts
from qos.tc.design.compile import CannotKeepError, Compiled, compile_policy
from qos.tc.design.nft import replacing
from qos.tc.kernel.probe import probe
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.backlogs import backlogs
from qos.tc.reconcile.plan import Step, plan
from qos.tc.state import NetworkState, is_our_qdisc

if TYPE_CHECKING:
    from qos.tc.kernel.netlink import Kernel

__all__ = ["Survey", "backlogs", "netns_of", "survey"]

_MOST_NAMED = 12


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what it takes."""

    netns: str | None
    facts: dict[str, LinkFacts]
    capabilities: Capabilities
    observed: NetworkState
    compiled: Compiled
    steps: tuple[Step, ...]


def netns_of(policy: LinkPolicy) -> tuple[str | None, ...]:
    """The namespaces of a policy's interfaces, each once, as they come."""
    return tuple(dict.fromkeys(each.netns for each in policy.interfaces))


def survey(policy: LinkPolicy, netns: str | None, kernel: Kernel, capabilities: Capabilities | None = None) -> Survey:
    """Look at the policy's devices in this namespace; capabilities: what `probe` said, None to ask it now.

    Raises CannotKeepError, and KernelError where the kernel cannot be asked.
    """
    facts = kernel.facts()
    _check_interfaces(policy, netns, facts, kernel)
    observed = kernel.observe([each.name for each in policy.interfaces if each.netns == netns])
    known = probe(netns) if capabilities is None else capabilities
    compiled = compile_policy(policy, netns, facts=facts, capabilities=known, observed=observed)
    # Only what is not in force yet is tried, so that looking again and again starts no process.
    if (table := compiled.desired.table) not in ("", observed.table) and (
        said := kernel.table_refusal(replacing(compiled.programs[table].decode()))
    ):
        known = msgspec.structs.replace(known, nftables=f"nftables: {said}")
        compiled = compile_policy(policy, netns, facts=facts, capabilities=known, observed=observed)
    names = {each.name for each in (*observed.links, *compiled.desired.links)} & facts.keys()
    return Survey(
        netns=netns,
        facts=facts,
        capabilities=known,
        observed=observed,
        compiled=compiled,
        steps=plan(observed, compiled.desired, backlogs(kernel, names)),
    )


def _check_interfaces(policy: LinkPolicy, netns: str | None, facts: Mapping[str, LinkFacts], kernel: Kernel) -> None:
    missing = [
        (place, each.name)
        for place, each in enumerate(policy.interfaces)
        if each.netns == netns and each.name not in facts
    ]
    if missing:
        there = sorted(facts)
        listed = ", ".join(there[:_MOST_NAMED]) + (", ..." if len(there) > _MOST_NAMED else "")
        here = "there" if netns is None else f"in namespace {netns}"
        raise CannotKeepError(
            "\n".join(
                f"interfaces[{place}] {name}: no such interface{did_you_mean(name, there)} ({here} are {listed})"
                for place, name in missing
            )
            + _renamed(policy, netns, facts, kernel)
        )


def _renamed(policy: LinkPolicy, netns: str | None, facts: Mapping[str, LinkFacts], kernel: Kernel) -> str:
    named = {each.name for each in policy.interfaces if each.netns == netns}
    ours = [
        each.name
        for each in kernel.observe(facts.keys() - named).links
        if each.ifb_for is None and any(map(is_our_qdisc, each.qdiscs))
    ]
    return "".join(f"\n{name} has queues of ours and is not in the config: was it renamed?" for name in ours)
