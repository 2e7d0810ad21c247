# SPDX-License-Identifier: Apache-2.0
"""A place for changes of traffic control on kernels in memory, with clocks that move when asked."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from qos.tc.capabilities import Capabilities
from qos.tc.change.ledger import Ledger, Pending
from qos.tc.change.lock import LockError
from qos.tc.change.site import Site
from tests.fakes.fake_kernel import FakeDevice, FakeKernel

__all__ = ["OLD_KERNEL", "FakePlace"]

_ABSENT = "Specified qdisc kind is unknown"
OLD_KERNEL = Capabilities(
    kernel="6.1.0-test",
    qdiscs={
        "htb": "",
        "bfifo": "",
        "tbf": _ABSENT,
        "cake": _ABSENT,
        "fq_codel": _ABSENT,
        "ets": _ABSENT,
        "fq": _ABSENT,
    },
    classifiers={"u32": "", "flower": "TC classifier not found", "matchall": "", "bpf": "Operation not permitted"},
    actions={"mirred": "", "skbedit": ""},
    ifb="",
    clsact="",
    per_packet_priority=False,
)
"""HTB, bfifo and u32: what needs no program to be loaded."""


class FakePlace:
    """Kernels by namespace, the books, and what was armed."""

    def __init__(self, folder: Path) -> None:
        self.kernels: dict[str | None, FakeKernel] = {None: FakeKernel(FakeDevice("eth0"), FakeDevice("eth1"))}
        self.ledger = Ledger(folder / "qos")
        self.now, self.boot = 1000.0, "this boot"
        self.armed: list[Pending] = []
        self.befores: list[str] = []
        self.site = Site(
            ledger=self.ledger,
            lock_of=self.lock_of,
            arm=self.arm,
            open_kernel=lambda netns: nullcontext(self.kernels[netns]),  # type: ignore[arg-type,return-value]
            probe=lambda _: OLD_KERNEL,
            may_change=lambda: True,
            boot_clock=lambda: self.now,
            boot_id=lambda: self.boot,
            before=self.before,
        )

    @property
    def kernel(self) -> FakeKernel:
        """That of our own namespace."""
        found = self.kernels[None]
        assert found is not None
        return found

    def lock_of(self, netns: str | None) -> Path:
        if netns not in self.kernels:
            raise LockError(f"no network namespace is named {netns}")
        return self.ledger.folder / f"netns-{netns}.lock"

    def arm(self, pending: Pending) -> None:
        self.armed.append(pending)

    def before(self, step: str) -> None:
        self.befores.append(step)

    def pending(self) -> Pending | None:
        return self.ledger.read(Pending)

    def left_unfinished(self) -> None:
        """As if the process that applied had died after its last step."""
        pending = self.pending()
        assert pending is not None
        self.ledger.write(replace(pending, done=False))

    def devices(self) -> Any:
        """What is on each device, for comparisons."""
        return {
            (netns, name): device.state()
            for netns, kernel in self.kernels.items()
            for name, device in kernel.devices.items()
        }
