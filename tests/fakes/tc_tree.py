# SPDX-License-Identifier: Apache-2.0
"""A small tree of traffic control as we make it, and how it looks to the door."""

from __future__ import annotations

from qos.tc.kernel.netlink import Kernel
from qos.tc.state import CLSACT, ROOT, Bfifo, Clsact, Htb, HtbClass, LinkState, Qdisc, TcClass

HOOKS = Qdisc(0xFFFF0000, CLSACT, Clsact())
ROOT_HTB = Qdisc(0x51A0000, ROOT, Htb(0x30))
LEAF = Qdisc(0x300000, 0x51A0030, Bfifo(30_000))
INNER = TcClass(
    0x51A0001, 0x51A0000, HtbClass(rate=2_500_000, ceil=2_500_000, burst=31250, cburst=31250, prio=0, quantum=1514)
)
CLASS = TcClass(
    0x51A0030,
    0x51A0001,
    HtbClass(rate=1_250_000, ceil=2_500_000, burst=31251, cburst=31253, prio=3, quantum=3001, overhead=24),
)
"""The default one."""
FAST = TcClass(
    0x51A0016,
    0x51A0001,
    HtbClass(rate=2**32, ceil=50_000_000_000, burst=2**32 - 1, cburst=7, prio=7, quantum=200_001, overhead=256),
)
"""One with numbers at their limits."""


def make_tree(kernel: Kernel, device: str = "eth0") -> None:
    """All of it."""
    for each in (ROOT_HTB, INNER, CLASS, LEAF, FAST):
        kernel.add(device, each)


def seen(kernel: Kernel, device: str = "eth0") -> LinkState:
    """What the door reads of a device."""
    link = kernel.observe({device}).link(device)
    assert link is not None, f"{device} is not there"
    return link
