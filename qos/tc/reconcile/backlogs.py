# SPDX-License-Identifier: Apache-2.0
"""How many packets wait in which queue, for a plan to say what it would lose."""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import TYPE_CHECKING

from qos.tc.errors import KernelError

if TYPE_CHECKING:
    from qos.tc.kernel.netlink import Kernel

__all__ = ["backlogs"]


def backlogs(kernel: Kernel, devices: Collection[str]) -> dict[tuple[str, int], int]:
    """Packets that wait now, by device and handle, as `plan` takes them; handle 0 is the kernel's own qdisc."""
    found = {}
    for device in devices:
        found[device, 0] = _in_the_kernels_own(kernel, device)
        found |= {(device, handle): each.backlog_packets for handle, each in kernel.counters(device).items()}
    return found


def _in_the_kernels_own(kernel: Kernel, device: str) -> int:
    try:
        return kernel.backlog(device, 0)[0]
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0  # somebody made a root qdisc
