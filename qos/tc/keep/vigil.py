# SPDX-License-Identifier: Apache-2.0
"""What the keeper does at each look: read the books, compare every namespace, act as `keeping` says, find words for it.

Nothing is said twice: a line comes when something changes, not at every look.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from typing import Literal

from qos.tc.change.ledger import Confirmed, LastRollback, LedgerError, Pending
from qos.tc.change.lock import LockError
from qos.tc.change.making import put_back_unconfirmed
from qos.tc.change.site import ChangeError, Site
from qos.tc.errors import KernelError
from qos.tc.keep.keeping import FULL_CHECK_S, GRACE_S, Action, Duty, RepairBudget, action, duty
from qos.tc.keep.messages import Ended, LinkReading, LogLine, Readings, Report, Standing
from qos.tc.keep.upkeep import WHO, Upkeep, released
from qos.tc.reconcile.survey import netns_of

__all__ = ["Vigil"]

_SOON_S = 1.0  # somebody had the lock
_REST_S = FULL_CHECK_S  # what failed is not tried again at every message that the failure itself caused
Level = Literal["info", "warning", "error"]


class Vigil:
    """What is known of everything that is kept. alone: whether nobody else keeps it, asked at the end."""

    def __init__(self, site: Site, *, alone: Callable[[], bool] = lambda: True) -> None:
        self._alone = alone
        self.upkeeps: list[Upkeep] = []
        self.repairs = 0
        self._site = site
        self._confirmed: Confirmed | None = None
        self._duty = Duty.IDLE
        self._budget = RepairBudget(0)
        self._reports: list[Report] = []
        self._said: dict[Hashable, str] = {}
        self._standing: Standing | None = None

    def __repr__(self) -> str:
        return f"<Vigil {self._duty} of {self.upkeeps!r}>"

    def reports(self) -> list[Report]:
        """What is to be said now."""
        reports, self._reports = self._reports, []
        return reports

    def look(self, now: float) -> tuple[float, float]:
        """Do what is to be done. In how many seconds to look again, and for how many to heed no message before."""
        try:
            confirmed, pending = self._books()
        except LedgerError as error:
            self._say("books", "error", "traffic_control_books", str(error))
            return FULL_CHECK_S, 0.0
        self._forget("books")
        boottime = self._site.boot_clock()
        self._duty = duty(confirmed, pending, boot_id=self._site.boot_id(), boottime=boottime)
        self._confirm(confirmed)
        wait_s = FULL_CHECK_S, 0.0
        if self._duty is Duty.KEEP and confirmed is not None:
            wait_s = self._keep(confirmed, now)
        elif pending is not None and self._duty is Duty.HANDS_OFF:
            until = "" if pending.deadline is None else f" for {max(0.0, pending.deadline - boottime):.0f} s"
            detail = f"change {pending.id} waits for its confirmation{until}; nothing is repaired until then"
            self._say("pending", "info", "traffic_control_hands_off", detail, as_if=pending.id)
            if pending.deadline is not None:
                wait_s = min(FULL_CHECK_S, max(_SOON_S, pending.deadline + GRACE_S - boottime)), 0.0
        elif pending is not None and self._duty is Duty.REVERT:
            wait_s = _SOON_S if self._revert(pending) else FULL_CHECK_S, 0.0
        self._stand()
        return wait_s

    def standing(self) -> Standing:
        """What is kept now."""
        return Standing(
            id=None if self._confirmed is None else self._confirmed.id,
            digest=None if self._confirmed is None else self._confirmed.policy.digest,
            duty=self._duty,
            links=tuple(self._links(counted=False)),
            repairs=self.repairs,
        )

    def readings(self) -> Readings:
        """The counters, as they are now."""
        for each in self.upkeeps:
            each.count()
        return Readings(links=tuple(self._links(counted=True)), repairs=self.repairs)

    def end(self) -> Ended:
        """Keep what is in the kernel, or release it, as the confirmed policy says."""
        confirmed = self._confirmed
        if confirmed is None or confirmed.policy.safety.on_exit != "release":
            return Ended(released=False)
        if not self._alone():
            self._log("info", "traffic_control_left", "another gateway keeps it, so nothing was released")
            return Ended(released=False)
        failure = released(self._site, confirmed)
        return Ended(released=not failure, failure=failure)

    def _books(self) -> tuple[Confirmed | None, Pending | None]:
        confirmed, pending = self._site.ledger.read(Confirmed), self._site.ledger.read(Pending)
        if confirmed is not None and pending is not None and confirmed.id == pending.id:
            pending = None  # confirmed, and about to be forgotten as pending
        return confirmed, pending

    def _confirm(self, confirmed: Confirmed | None) -> None:
        """What holds from now on."""
        if getattr(confirmed, "id", None) == getattr(self._confirmed, "id", None):
            return
        self._confirmed = confirmed
        self._said.clear()
        names = () if confirmed is None else netns_of(confirmed.policy)
        known = {each.netns: each for each in self.upkeeps}
        self.upkeeps = [known.get(name) or Upkeep(self._site, name) for name in names]
        for each in self.upkeeps:
            each.ask_again()
        if confirmed is not None:
            self._budget.most = confirmed.policy.safety.repairs_per_10m

    def _keep(self, confirmed: Confirmed, now: float) -> tuple[float, float]:
        self._forget("pending")
        again_s, rest_s = FULL_CHECK_S, 0.0
        for each in self.upkeeps:
            failure = self._keep_one(each, confirmed, now)
            if failure is None:
                again_s = _SOON_S
            elif failure:
                rest_s = _REST_S
        return again_s, rest_s

    def _keep_one(self, upkeep: Upkeep, confirmed: Confirmed, now: float) -> str | None:
        """What failed, "" where nothing did, None where it is to be tried again soon."""
        found = upkeep.look(confirmed.policy)
        self._tell_of_links(upkeep)
        if found.target is None:
            if found.why:
                self._say((upkeep.netns, "why"), "error", "traffic_control_failed", found.why, netns=upkeep.netns)
            return ""
        self._forget((upkeep.netns, "why"))
        safety = confirmed.policy.safety
        act = action(changed=found.changed, unmade=found.unmade, drift=safety.drift, budget=self._budget, now=now)
        if act is Action.REPORT:
            self._report(upkeep, drift=safety.drift)
        if act not in (Action.APPLY, Action.REPAIR):
            return ""
        if act is Action.REPAIR:
            self._budget.spend(now)
        failure = upkeep.make(confirmed)
        busy = upkeep.netns, "lock"
        if failure is None:
            if upkeep.waits_for:
                self._say(busy, "warning", "traffic_control_busy", upkeep.waits_for, netns=upkeep.netns)
            return None
        self._forget(busy)
        for interface, what in found.changed.items():
            self._tell_of_making(upkeep.netns, interface, what, act, failure)
        self.repairs += act is Action.REPAIR and not failure
        return failure

    def _tell_of_making(self, netns: str | None, interface: str, what: str, act: Action, failure: str) -> None:
        if failure:
            self._log("error", "traffic_control_failed", failure, interface, netns)
        elif act is Action.REPAIR:
            self._log("warning", "traffic_control_repaired", f"somebody else changed it: {what}", interface, netns)
        else:
            self._log("info", "traffic_control_made", what, interface, netns)

    def _report(self, upkeep: Upkeep, *, drift: str) -> None:
        for interface, what in upkeep.found.changed.items():
            if drift == "repair":
                name, level = "traffic_control_contested", "error"
                remedy = f"{self._budget.most} repairs in 10 minutes are spent, so somebody else insists: find who"
            else:
                name, level, remedy = "traffic_control_drift", "warning", "`inferlane qos apply` makes it again"
            key = upkeep.netns, interface, "drift"
            self._say(key, level, name, f"{what}; {remedy}", interface=interface, netns=upkeep.netns)  # type: ignore[arg-type]

    def _tell_of_links(self, upkeep: Upkeep) -> None:
        netns, found = upkeep.netns, upkeep.found
        for link in self._interfaces(netns):
            key = netns, link, "missing"
            if link in found.missing:
                detail = "there is no such interface; it is shaped as soon as there is"
                self._say(key, "warning", "interface_missing", detail, interface=link, netns=netns)
            elif self._forget(key):
                self._log("info", "interface_back", "", link, netns)
            if link not in found.changed:
                self._forget((netns, link, "drift"))
        for note in () if found.target is None else found.target.notes:
            self._say((netns, note.where, note.text), "warning", "traffic_control_note", f"{note.where}: {note.text}")

    def _revert(self, pending: Pending) -> bool:
        """Undo what was left behind; whether to look again soon."""
        try:
            if pending.boot_id == self._site.boot_id():
                undone = put_back_unconfirmed(self._site, pending, why="whoever answered for it died")
            else:
                undone = self._forget_pending(pending)
        except LockError:
            return True  # somebody is at it
        except (ChangeError, KernelError, LedgerError) as error:
            self._say("revert", "error", "traffic_control_failed", f"change {pending.id}: {error}")
            return False
        if undone:
            self._log("warning", "traffic_control_reverted", f"change {pending.id} was never confirmed")
        return True

    def _forget_pending(self, pending: Pending) -> bool:
        """The kernel forgot it with its boot; the books follow."""
        with self._site.alone(WHO):
            current = self._site.ledger.read(Pending)
            if current is None or current.id != pending.id:
                return False
            at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            why = "the machine was started anew before it was confirmed"
            self._site.ledger.write(LastRollback(id=pending.id, at=at, why=why, failure=None))
            self._site.ledger.remove(Pending)
        return True

    def _interfaces(self, netns: str | None) -> list[str]:
        policy = None if self._confirmed is None else self._confirmed.policy
        return [] if policy is None else [each.name for each in policy.interfaces if each.netns == netns]

    def _links(self, *, counted: bool) -> list[LinkReading]:
        links = []
        for upkeep in self.upkeeps:
            target = upkeep.found.target
            for name in self._interfaces(upkeep.netns):
                trouble = upkeep.found.trouble(name)
                classes = (
                    upkeep.readings.of_interface(name, target.desired, target.labels)
                    if counted and target is not None
                    else ()
                )
                links.append(
                    LinkReading(
                        interface=name, netns=upkeep.netns, in_force=not trouble, why=trouble, classes=tuple(classes)
                    )
                )
        return links

    def _stand(self) -> None:
        standing = self.standing()
        if standing != self._standing:
            self._standing = standing
            self._reports.append(standing)

    def _say(  # noqa: PLR0913  a log line and what makes it another one
        self,
        key: Hashable,
        level: Level,
        name: str,
        detail: str,
        *,
        interface: str = "",
        netns: str | None = None,
        as_if: str = "",
    ) -> None:
        """Log it unless it was the last that was said of this."""
        if self._said.get(key) != (as_if or detail):
            self._said[key] = as_if or detail
            self._log(level, name, detail, interface, netns)

    def _forget(self, key: Hashable) -> bool:
        """It is over; whether it was ever said."""
        return self._said.pop(key, None) is not None

    def _log(self, level: Level, name: str, detail: str, interface: str = "", netns: str | None = None) -> None:
        self._reports.append(LogLine(level=level, name=name, interface=interface, netns=netns, detail=detail))
