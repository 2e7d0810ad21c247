# SPDX-License-Identifier: Apache-2.0
"""How many CPUs this process may use: of a machine that has more, a container gets a part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.supervise.cpus import available


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(48)))


class Machine:
    """Its control groups, as files."""

    def __init__(self, folder: Path, member: str) -> None:
        self.mount, self.member = folder / "mount", folder / "cgroup"
        self.member.write_text(member)

    def file(self, path: str, text: str) -> None:
        file = self.mount / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def cpus(self) -> int:
        return available(member=self.member, mount=self.mount)


def test_without_control_groups_it_is_what_the_scheduler_allows(tmp_path: Path) -> None:
    assert available(member=tmp_path / "none", mount=tmp_path / "none") == 48
    assert Machine(tmp_path, "0::/\n").cpus() == 48


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000\n", 48), ("200000 100000\n", 2), ("150000 100000\n", 2), ("5000 100000\n", 1), ("nonsense", 48)],
)
def test_a_container_s_quota_counts_in_whole_cpus(tmp_path: Path, text: str, cpus: int) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.file("cpu.max", text)
    assert machine.cpus() == cpus


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/system.slice/inferlane.service\n")
    machine.file("system.slice/cpu.max", "300000 100000")
    machine.file("system.slice/inferlane.service/cpu.max", "800000 100000")
    assert machine.cpus() == 3


def test_the_first_version_of_control_groups_has_other_names(tmp_path: Path) -> None:
    """Seen from a container, the path is often one that only the host has."""
    machine = Machine(tmp_path, "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/\n")
    machine.file("cpu,cpuacct/cpu.cfs_quota_us", "400000\n")
    machine.file("cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert machine.cpus() == 4
    machine.file("cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert machine.cpus() == 48
