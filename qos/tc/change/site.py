# SPDX-License-Identifier: Apache-2.0
"""Where changes of traffic control are made: the books, the locks, the doors to the kernel, the clocks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from qos.tc.capabilities import Capabilities
from qos.tc.change.ledger import Baseline, Confirmed, Ledger, Pending, boot_clock, boot_id
from qos.tc.change.lock import LockError, locked
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe

__all__ = ["Books", "ChangeError", "Site"]

_CAP_NET_ADMIN = 12  # capabilities(7), linux/capability.h


class ChangeError(Exception):
    """The change was not made, or not kept: lines for people, the remedy among them."""


def _may_change() -> bool:
    found = re.search(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())
    return found is not None and bool(int(found[1], 16) >> _CAP_NET_ADMIN & 1)


def _unarmed(pending: Pending) -> None:
    raise ChangeError(f"change {pending.id}: nothing here can wait for a confirmation; apply without --confirm")


def _uninterrupted(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where changes are made, and by what."""

    ledger: Ledger
    lock_of: Callable[[str | None], Path]
    """The lock of a namespace (`lock.lock_file`); LockError where there is no such namespace."""
    arm: Callable[[Pending], None] = _unarmed
    """Returns when somebody watches who will undo this change at its deadline (`watcher.arm`)."""
    open_kernel: Callable[[str | None], AbstractContextManager[Kernel]] = Kernel
    probe: Callable[[str | None], Capabilities] = probe
    may_change: Callable[[], bool] = _may_change
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    boot_clock: Callable[[], float] = boot_clock
    boot_id: Callable[[], str] = boot_id
    before: Callable[[str], None] = _uninterrupted
    """Told each step of a change before it is made; tests die there."""

    @contextmanager
    def alone(self, who: str) -> Iterator[None]:
        """Nobody else changes what these books say. Only for those who may change the kernel."""
        if not self.may_change():
            raise ChangeError("changing traffic control needs the capability CAP_NET_ADMIN; run it as root")
        with locked([self.ledger.lock], who=who, clock=self.clock, sleep=self.sleep):
            yield

    @contextmanager
    def kernels(self, names: Collection[str | None], who: str) -> Iterator[dict[str | None, Kernel]]:
        """Nobody else changes these namespaces."""
        files = [self.lock_of(each) for each in names]
        with locked(files, who=who, clock=self.clock, sleep=self.sleep), ExitStack() as opened:
            yield {each: opened.enter_context(self.open_kernel(each)) for each in names}

    def there(self, netns: str | None) -> bool:
        """Whether the namespace still exists; with it went all that was made there."""
        try:
            self.lock_of(netns)
        except LockError:
            return False
        return True

    def books(self) -> Books:
        """What they say that still holds: a change ends with the boot it was made in, and when it is confirmed."""
        boot = self.boot_id()
        confirmed, pending = self.ledger.read(Confirmed), self.ledger.read(Pending)
        baseline = self.ledger.read(Baseline)
        if pending is not None and (pending.boot_id != boot or (confirmed is not None and confirmed.id == pending.id)):
            pending = None
        devices = () if baseline is None or baseline.boot_id != boot else baseline.devices
        return Books(
            confirmed=confirmed,
            pending=pending,
            baseline=Baseline(boot_id=boot, devices=tuple(each for each in devices if self.there(each.netns))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What stands, what is on its way, what was there before us."""

    confirmed: Confirmed | None
    pending: Pending | None
    baseline: Baseline

    @property
    def confirmed_id(self) -> str | None:
        """Of the policy that stands."""
        return None if self.confirmed is None else self.confirmed.id
