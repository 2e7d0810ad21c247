# SPDX-License-Identifier: Apache-2.0
"""A change of traffic control as a whole: made in every namespace or in none, kept when confirmed, undone when not.

lock -> look -> write down what was there -> arm the watcher -> make the steps -> read back -> confirmed, or pending
until `confirm`. Whatever dies on the way, the books say what to put back, and the next command says so.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qos.tc.change.everywhere import make_everywhere, put_back, put_back_everywhere
from qos.tc.change.ledger import Baseline, Confirmed, Earlier, LastRollback, LedgerError, Pending
from qos.tc.change.plan_file import Planned, seen
from qos.tc.change.scope import Target, namespaces, target, way_back, with_baseline, with_devices_of, without_others
from qos.tc.change.site import Books, ChangeError, Site
from qos.tc.policy import LinkPolicy
from qos.tc.tree import snapshot

if TYPE_CHECKING:
    from qos.tc.kernel.netlink import Kernel

__all__ = [
    "Changed",
    "apply",
    "confirm",
    "interrupted",
    "put_back_unconfirmed",
    "release",
    "roll_back",
    "survey",
    "undone",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a change came to."""

    id: str
    targets: tuple[Target, ...]
    pending: Pending | None
    """Where it waits for its confirmation."""

    @property
    def steps(self) -> int:
        """How many were made."""
        return sum(len(each.steps) for each in self.targets)


def survey(site: Site, policy: LinkPolicy) -> list[Target]:
    """What `apply` would do now. Changes nothing and waits for nobody."""
    baseline = site.books().baseline
    found = []
    for name in namespaces(policy, baseline):
        with site.open_kernel(name) as kernel:
            found.append(target(policy, name, kernel, baseline, site.probe))
    return found


def apply(site: Site, policy: LinkPolicy, *, confirm_s: float | None = None, planned: Planned | None = None) -> Changed:
    """Make the kernel keep the policy. With confirm_s it is undone that long after, unless `confirm` comes."""
    with site.alone("inferlane qos apply"):
        books = site.books()
        if (armed := _armed_again(site, books.pending, policy, confirm_s)) is not None:
            return armed
        names = namespaces(policy, books.baseline)
        with site.kernels(names, "inferlane qos apply") as kernels:
            targets = tuple(target(policy, each, kernels[each], books.baseline, site.probe) for each in names)
            if planned is not None:
                planned.check(
                    confirmed=books.confirmed_id,
                    seen=[seen(each.observed, each.desired) for each in targets],
                )
            return _make(site, books, policy, targets, kernels, confirm_s)


def confirm(site: Site) -> Confirmed:
    """Keep what waits for it."""
    with site.alone("inferlane qos confirm"):
        books = site.books()
        pending = books.pending
        if pending is None:
            last = site.ledger.read(LastRollback)
            raise ChangeError(f"nothing waits for a confirmation{f'; {undone(last)}' if last else ''}")
        if not pending.done:
            raise ChangeError(interrupted(pending))
        if pending.deadline is not None and pending.deadline <= (now := site.boot_clock()):
            raise ChangeError(
                f"change {pending.id}: its time to confirm ended {now - pending.deadline:.0f} s ago, it is being put "
                "back; apply it again, with more time: --confirm 300s"
            )
        return _keep(site, pending, books.confirmed)


def roll_back(site: Site) -> str:
    """Back to before the change that is pending, else to the policy before the confirmed one; what was done."""
    with site.alone("inferlane qos rollback"):
        books = site.books()
        if (pending := books.pending) is not None:
            if failure := put_back_everywhere(site, pending):
                raise ChangeError(f"change {pending.id} could not be put back: {failure}")
            site.ledger.remove(Pending)
            return f"change {pending.id} is undone: everything is as it was before it"
        if (confirmed := books.confirmed) is None or (earlier := confirmed.earlier) is None:
            raise ChangeError("there is nothing to go back to; `inferlane qos release` removes what was made")
        if earlier.policy is None:
            _release(site, books, confirmed.policy)
            return f"policy {confirmed.id} was the first: all that was made is removed"
        names = namespaces(earlier.policy, books.baseline)
        with site.kernels(names, "inferlane qos rollback") as kernels:
            targets = tuple(target(earlier.policy, each, kernels[each], books.baseline, site.probe) for each in names)
            _make(site, books, earlier.policy, targets, kernels, None)
        kept = site.ledger.read(Confirmed)
        if kept is not None:
            site.ledger.write(replace(kept, earlier=None))  # one way back, not to and fro
        return f"the policy before {confirmed.id} stands again"


def release(site: Site, policy: LinkPolicy | None = None) -> int | None:
    """Remove all that we made and nothing else; how many steps that took, None where nothing is known to be ours.

    policy: names devices, for where the books are lost.
    """
    with site.alone("inferlane qos release"):
        books = site.books()
        return _release(site, books, policy)


def put_back_unconfirmed(site: Site, pending: Pending, *, why: str = "") -> bool:
    """At its deadline: undo it unless it was confirmed, undone or replaced meanwhile; whether it was undone."""
    with site.alone("the watcher of inferlane qos apply"):
        try:
            current = site.ledger.read(Pending)
            confirmed = site.ledger.read(Confirmed)
        except LedgerError:
            current, confirmed = pending, None  # a damaged book is no confirmation
        if current is None or current.id != pending.id:
            return False
        if confirmed is not None and confirmed.id == pending.id:
            site.ledger.remove(Pending)  # whoever confirmed it died before doing so
            return False
        if current.boot_id == site.boot_id() and (current.deadline or 0.0) > site.boot_clock():
            return False
        failure = put_back_everywhere(site, current)
        reason = why or f"nobody confirmed it within {current.confirm_s or 0:g} s"
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        site.ledger.write(LastRollback(id=current.id, at=at, why=reason, failure=failure or None))
        site.ledger.remove(Pending)
        return True


def interrupted(pending: Pending) -> str:
    """For people: what to do about a change whose process died."""
    return (
        f"change {pending.id}: an apply was interrupted (process {pending.applier} is gone); "
        "`inferlane qos rollback` puts back what was, or apply again"
    )


def undone(last: LastRollback) -> str:
    """For people: what the watcher did while nobody looked."""
    if last.failure:
        return f"change {last.id} was to be put back at {last.at}, because {last.why}, and could not: {last.failure}"
    return f"change {last.id} was put back at {last.at}, because {last.why}"


def _armed_again(site: Site, pending: Pending | None, policy: LinkPolicy, confirm_s: float | None) -> Changed | None:
    """One change at a time: the same one again gets more time, another is refused, a dead one is taken over."""
    now = site.boot_clock()
    if pending is None or not pending.done or pending.deadline is None or pending.deadline <= now:
        return None
    if confirm_s is None or policy.digest != pending.policy.digest:
        raise ChangeError(
            f"change {pending.id} waits for its confirmation ({pending.deadline - now:.0f} s left); "
            "`inferlane qos confirm` keeps it, `inferlane qos rollback` undoes it: then apply this"
        )
    longer = replace(pending, deadline=now + confirm_s, confirm_s=confirm_s)
    site.arm(longer)
    site.ledger.write(longer)
    return Changed(id=longer.id, targets=(), pending=longer)


def _make(
    site: Site,
    books: Books,
    policy: LinkPolicy,
    targets: tuple[Target, ...],
    kernels: Mapping[str | None, Kernel],
    confirm_s: float | None,
) -> Changed:
    pending = _pending(site, books, policy, targets, confirm_s)
    if books.pending is None and not any(each.steps for each in targets):
        _keep(site, pending, books.confirmed)
        return Changed(id=pending.id, targets=targets, pending=None)
    site.ledger.write(with_baseline(books.baseline, targets))
    site.ledger.write(pending)
    site.before("arm the watcher")
    if confirm_s is not None:
        _arm(site, pending, books.pending)
    try:
        failure = make_everywhere(site, targets, kernels, pending.programs)
    except BaseException:  # such as the interrupt key
        put_back(site, pending, kernels)
        site.ledger.remove(Pending)
        raise
    if failure:
        left = put_back(site, pending, kernels)
        site.ledger.remove(Pending)
        raise ChangeError(f"{failure}; {f'{left}' if left else 'everything was put back, nothing is changed'}")
    site.before("confirm")
    if confirm_s is None:
        _keep(site, pending, books.confirmed)
        return Changed(id=pending.id, targets=targets, pending=None)
    done = replace(pending, done=True)
    site.ledger.write(done)
    return Changed(id=done.id, targets=targets, pending=done)


def _pending(
    site: Site, books: Books, policy: LinkPolicy, targets: Sequence[Target], confirm_s: float | None
) -> Pending:
    before = {} if books.pending is None else {each.netns: each for each in books.pending.snapshots}
    old = {} if books.confirmed is None else books.confirmed.programs
    old = old | ({} if books.pending is None else books.pending.programs)
    new = {name: program for each in targets for name, program in each.programs.items()}
    return Pending(
        id=secrets.token_hex(4),
        policy=policy,
        previous=books.confirmed_id,
        snapshots=tuple(way_back(before.get(each.netns), snapshot(each.observed, each.desired)) for each in targets),
        programs=old | new,
        classifiers=tuple(sorted(new)),
        boot_id=site.boot_id(),
        deadline=None if confirm_s is None else site.boot_clock() + confirm_s,
        confirm_s=confirm_s,
        applier=os.getpid(),
    )


def _arm(site: Site, pending: Pending, before: Pending | None) -> None:
    try:
        site.arm(pending)
    except BaseException:  # nothing was changed, so the books say what they said
        if before is None:
            site.ledger.remove(Pending)
        else:
            site.ledger.write(before)
        raise


def _keep(site: Site, pending: Pending, confirmed: Confirmed | None) -> Confirmed:
    if confirmed is None:
        earlier: Earlier | None = Earlier(id=None, policy=None)
    elif confirmed.policy == pending.policy:
        earlier = confirmed.earlier  # the same again, as after a drift: the way back stays
    else:
        earlier = Earlier(id=confirmed.id, policy=confirmed.policy)
    programs = {name: pending.programs[name] for name in pending.classifiers}
    kept = Confirmed(id=pending.id, policy=pending.policy, programs=programs, earlier=earlier)
    site.ledger.write(kept)
    site.before("forget what was pending")
    site.ledger.remove(Pending)
    site.ledger.remove(LastRollback)
    if (baseline := site.ledger.read(Baseline)) is not None:
        site.ledger.write(without_others(baseline, pending.policy))
    return kept


def _release(site: Site, books: Books, policy: LinkPolicy | None) -> int | None:
    known = [each.policy for each in (books.confirmed, books.pending) if each is not None]
    baseline = books.baseline
    for each in (policy, *known):
        baseline = baseline if each is None else with_devices_of(baseline, each)
    if not baseline.devices:
        return None
    names = [each for each in namespaces(None, baseline) if site.there(each)]
    with site.kernels(names, "inferlane qos release") as kernels:
        targets = [target(None, each, kernels[each], baseline, site.probe) for each in names]
        failures = [failure for each in targets if (failure := make_everywhere(site, [each], kernels))]
        if failures:
            raise ChangeError(f"not all could be removed: {'; '.join(failures)}")
        for kind in (Confirmed, Pending, LastRollback, Baseline):
            site.ledger.remove(kind)
    return sum(len(each.steps) for each in targets)
