# SPDX-License-Identifier: Apache-2.0
"""How many CPUs this process may use: its affinity, or less where a control group has a quota (cgroups(7)).

More workers than that only take turns, and all of them stand still once the quota of a period is used up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available"]

_MEMBER, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available(*, member: Path = _MEMBER, mount: Path = _MOUNT) -> int:
    """In whole CPUs, a part of one counts as one. member: which groups it is in; mount: where groups are files."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(math.ceil(each) for each in _quotas(member, mount))]))


def _quotas(member: Path, mount: Path) -> Iterator[float]:
    for line in _read(member).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers
        # Groups above have quotas, too; what a container does not see is passed over.
        group = root / path.strip("/")
        for folder in (group, *(each for each in group.parents if each.is_relative_to(root))):
            quota, period = _second_version(folder) if not controllers else _first_version(folder)
            if quota.isdecimal() and period.isdecimal() and int(period):
                yield int(quota) / int(period)


def _second_version(folder: Path) -> tuple[str, str]:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return quota, period


def _first_version(folder: Path) -> tuple[str, str]:
    return _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
