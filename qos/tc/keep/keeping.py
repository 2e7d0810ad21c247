# SPDX-License-Identifier: Apache-2.0
"""What the keeper of traffic control does, and when: whose turn it is, when to look, what to do about a difference.

Decided without a clock and without the kernel; `keeper` reads both and does what is said here. `now` is monotonic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from qos.tc.policy import LinkPolicy

if TYPE_CHECKING:
    from qos.tc.change.ledger import Confirmed, Pending

__all__ = [
    "DEBOUNCE_S",
    "FULL_CHECK_S",
    "GRACE_S",
    "WINDOW_S",
    "Action",
    "Duty",
    "RepairBudget",
    "Timetable",
    "action",
    "duty",
    "in_reach",
]

DEBOUNCE_S = 0.2
"""A script makes a tree in dozens of messages: look when it has paused."""
FULL_CHECK_S = 30.0
"""The kernel's messages can be lost (ENOBUFS); this long at most nobody notices."""
_LONGEST_DEBOUNCE_S = 2.0  # somebody who changes something all the time must not keep us from ever looking
WINDOW_S = 600.0
"""Over which repairs are counted."""
GRACE_S = 5.0
"""After a change's deadline this is its watcher's time to undo it."""


class Duty(StrEnum):
    """Whose turn it is."""

    KEEP = "keep"
    """The confirmed policy is to hold."""
    IDLE = "idle"
    """Nothing was ever confirmed, or it was released."""
    HANDS_OFF = "hands off"
    """Somebody changes traffic control, and its watcher answers for that."""
    REVERT = "revert"
    """A change was left behind by all who answer for it."""


def duty(confirmed: Confirmed | None, pending: Pending | None, *, boot_id: str, boottime: float) -> Duty:
    """What the books ask for. boottime: seconds of the clock that deadlines are written in."""
    if pending is not None:
        if pending.boot_id != boot_id:
            return Duty.REVERT  # the kernel forgot everything when it started anew; only the book is left
        if pending.deadline is None:
            return Duty.REVERT  # unless its applier, who holds the lock while it lives, is still at it
        return Duty.HANDS_OFF if boottime < pending.deadline + GRACE_S else Duty.REVERT
    return Duty.IDLE if confirmed is None else Duty.KEEP


class Action(StrEnum):
    """What to do about a namespace that was looked at."""

    NOTHING = "nothing"
    APPLY = "apply"
    """Ours to make, at start or on a device that is new: nobody undid anything."""
    REPAIR = "repair"
    """Somebody changed what we made."""
    REPORT = "report"


def action(
    *, changed: Collection[str], unmade: Collection[str], drift: str, budget: RepairBudget, now: float
) -> Action:
    """What to do. changed: devices that are not as promised; unmade: those on which nothing was made yet."""
    if not changed:
        return Action.NOTHING
    if set(changed) <= set(unmade):
        return Action.APPLY
    if drift == "off":
        return Action.NOTHING
    if drift == "repair" and budget.left(now):
        return Action.REPAIR
    return Action.REPORT


class RepairBudget:
    """So many repairs in ten minutes; whoever undoes more of them insists."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._made: deque[float] = deque()

    def __repr__(self) -> str:
        return f"<RepairBudget {len(self._made)} of {self.most}>"

    def left(self, now: float) -> int:
        """How many may be made now."""
        while self._made and self._made[0] <= now - WINDOW_S:
            self._made.popleft()
        return self.most - len(self._made)

    def spend(self, now: float) -> None:
        """One was made, or tried."""
        self._made.append(now)


class Timetable:
    """When to look: a pause after the kernel told of a change, and every so often anyway."""

    def __init__(self, now: float) -> None:
        self._full = now
        self._first: float | None = None
        self._last = now
        self._rests_until = now

    def __repr__(self) -> str:
        return f"<Timetable next {self.next():.3f}>"

    def touched(self, now: float) -> None:
        """The kernel told of a change."""
        if self._first is None:
            self._first = now
        self._last = now

    def next(self) -> float:
        """The instant to look at."""
        if self._first is None:
            return self._full
        return min(self._full, max(self._rests_until, min(self._last + DEBOUNCE_S, self._first + _LONGEST_DEBOUNCE_S)))

    def looked(self, now: float, *, again_s: float = FULL_CHECK_S, rest_s: float = 0.0) -> None:
        """It was looked at. again_s: sooner where somebody was in the way; rest_s: heed no message for so long."""
        self._first = None
        self._full = now + again_s
        self._rests_until = now + rest_s

    def at_once(self, now: float) -> None:
        """Somebody asks to look."""
        self._full = now


def in_reach(policy: LinkPolicy, netns: str | None, present: Collection[str]) -> tuple[LinkPolicy, tuple[str, ...]]:
    """The policy of one namespace for the interfaces that are there, and the names of those that are not."""
    here = [each for each in policy.interfaces if each.netns == netns]
    there = tuple(each for each in here if each.name in present)
    missing = tuple(each.name for each in here if each.name not in present)
    return msgspec.structs.replace(policy, interfaces=there), missing
