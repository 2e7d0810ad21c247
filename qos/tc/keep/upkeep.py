# SPDX-License-Identifier: Apache-2.0
"""One network namespace in the keeper's care: compared with what was promised, made so again, and counted.

It looks without a lock, as `status` does; it changes something only under the locks, after another look at the books.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from qos.tc.capabilities import Capabilities, LinkFacts
from qos.tc.change.ledger import Confirmed, LedgerError
from qos.tc.change.lock import LockError
from qos.tc.change.scope import Target, namespaces, target, with_baseline, with_devices_of
from qos.tc.change.site import ChangeError, Site
from qos.tc.design.compile import CannotKeepError
from qos.tc.errors import KernelError
from qos.tc.keep.keeping import in_reach
from qos.tc.keep.readings import Readings
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.commands import describe
from qos.tc.reconcile.survey import survey

__all__ = ["WHO", "Finding", "Upkeep", "released"]

WHO = "the gateway's traffic control"
"""For those who wait for a lock of ours."""
_LINES = 8  # of a log line's detail; a tree of a thousand classes has no more to say than a few


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look found."""

    target: Target | None = None
    """None: it could not be compared."""
    why: str = ""
    missing: tuple[str, ...] = ()
    """Interfaces that are not there."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """What is not as promised, by interface, for people."""
    unmade: frozenset[str] = frozenset()
    """Interfaces on which nothing was made since they are there."""

    def trouble(self, interface: str) -> str:
        """What keeps an interface from being as promised; "" where it is."""
        if interface in self.missing:
            return "there is no such interface"
        return self.why or self.changed.get(interface, "")


class Upkeep:
    """What is known of a namespace between two looks."""

    def __init__(self, site: Site, netns: str | None) -> None:
        self.netns = netns
        self.readings = Readings()
        self.found = Finding(why="not looked at yet")
        self.waits_for = ""
        """Who holds the lock, or why it cannot be had; "" where nobody is in the way."""
        self._site = site
        self._capabilities: Capabilities | None = None
        self._made: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Upkeep of {self.netns or 'our own namespace'}>"

    @property
    def identity(self) -> str:
        """Another one where the namespace of this name was made anew; "" where there is none."""
        try:
            return self._site.lock_of(self.netns).name
        except LockError:
            return ""

    def ask_again(self) -> None:
        """Another policy was confirmed, maybe because the kernel learnt something."""
        self._capabilities = None

    def look(self, policy: LinkPolicy) -> Finding:
        """Compare. Changes nothing in the kernel, and waits for nobody."""
        try:
            with self._site.open_kernel(self.netns) as kernel:
                self.found = self._compared(policy, kernel)
        except (KernelError, CannotKeepError, OSError) as error:
            self.found = Finding(why=str(error))
        return self.found

    def make(self, confirmed: Confirmed) -> str | None:
        """Have the kernel keep what is confirmed; what failed, "" where nothing did, None where it is not our turn."""
        site = self._site
        self.waits_for = ""
        try:
            with site.alone(WHO):
                books = site.books()
                if books.pending is not None or books.confirmed_id != confirmed.id:
                    return None
                with site.kernels([self.netns], WHO) as kernels:
                    kernel = kernels[self.netns]
                    self.found = self._compared(confirmed.policy, kernel)
                    if self.found.target is None or not self.found.target.steps:
                        return self.found.why
                    site.ledger.write(with_baseline(books.baseline, [self.found.target]))
                    return self._make(confirmed, self.found.target, kernel)
        except LockError as error:
            self.waits_for = str(error)
            return None
        except (KernelError, CannotKeepError, ChangeError, LedgerError, OSError) as error:
            return str(error)

    def count(self) -> None:
        """Read the counters of what is in force."""
        target = self.found.target
        if target is None or not target.labels:
            return
        try:
            with self._site.open_kernel(self.netns) as kernel:
                for device in {device for device, _ in target.labels}:
                    self.readings.read(device, kernel.counters(device), target.labels)
        except (KernelError, OSError):
            pass  # the interface is gone; the next look says so

    def _make(self, confirmed: Confirmed, target: Target, kernel: Kernel) -> str:
        programs = confirmed.programs | target.programs  # the former for the way back
        clock, sleep = self._site.clock, self._site.sleep
        outcome = apply(kernel, target.desired, programs=programs, steps=target.steps, clock=clock, sleep=sleep)
        for name in target.facts.keys() & {each.name for each in target.desired.links}:
            self._made[name] = _shape(target.facts[name])  # tried is enough: what fails again is no news
        if outcome.failure is None:  # read back, and equal
            self.found = replace(self.found, target=msgspec.structs.replace(target, steps=()), changed={})
        return outcome.failure or ""

    def _compared(self, policy: LinkPolicy, kernel: Kernel) -> Finding:
        facts = kernel.facts()
        here, missing = in_reach(policy, self.netns, facts.keys())
        if not here.interfaces:
            return Finding(missing=missing)
        if self._capabilities is None:
            self._capabilities = self._site.probe(self.netns)
        found = survey(here, self.netns, kernel, self._capabilities)
        compared = Target(
            netns=self.netns,
            facts=found.facts,
            capabilities=found.capabilities,
            observed=found.observed,
            desired=found.compiled.desired,
            steps=found.steps,
            programs=found.compiled.programs,
            labels=found.compiled.labels,
            notes=found.compiled.notes,
        )
        changed = _by_interface(compared)
        unmade = frozenset(name for name in changed if name not in facts or self._made.get(name) != _shape(facts[name]))
        for each in here.interfaces:
            if each.name not in changed:
                self._made[each.name] = _shape(facts[each.name])
        return Finding(target=compared, missing=missing, changed=changed, unmade=unmade)


def released(site: Site, confirmed: Confirmed) -> str:
    """Give every device back what it had before us, and keep the books: the next start makes it anew. What failed."""
    failures = []
    try:
        with site.alone(WHO):
            books = site.books()
            if books.pending is not None:
                return f"change {books.pending.id} waits for its confirmation, so nothing was released"
            baseline = with_devices_of(books.baseline, confirmed.policy)
            names = [each for each in namespaces(None, baseline) if site.there(each)]
            with site.kernels(names, WHO) as kernels:
                for name in names:
                    before = target(None, name, kernels[name], baseline, site.probe)
                    outcome = apply(
                        kernels[name],
                        before.desired,
                        programs=confirmed.programs,
                        steps=before.steps,
                        to_snapshot=True,
                        clock=site.clock,
                        sleep=site.sleep,
                    )
                    failures += [outcome.failure] if outcome.failure else []
    except (KernelError, ChangeError, LockError, LedgerError) as error:
        failures.append(str(error))
    return "; ".join(failures)


def _shape(facts: LinkFacts) -> tuple[int, int]:
    """What else than somebody's tc makes another tree due: another device, or another MTU.

    The leaves that cut trains throw away what is longer than the MTU that they were made for.
    """
    return facts.index, facts.mtu


def _by_interface(target: Target) -> dict[str, str]:
    """What is to be done, by the interface that it is done for: an IFB is its interface's."""
    lines: dict[str, list[str]] = {}
    states = (*target.desired.links, *target.observed.links)
    owner = {each.name: each.ifb_for for each in states if each.ifb_for is not None}
    every = [each.name for each in target.desired.links if each.ifb_for is None]
    for step in target.steps:
        # A table is for all of them.
        for interface in [owner.get(step.device, step.device)] if step.device else every:
            lines.setdefault(interface, []).append(describe(step, target.labels))
    return {name: _short(said) for name, said in lines.items()}


def _short(lines: list[str]) -> str:
    more = len(lines) - _LINES
    return "; ".join(lines[:_LINES]) + (f"; and {more} more" if more > 0 else "")
