# SPDX-License-Identifier: Apache-2.0
"""The systemd unit: the rights that are needed and no others, and nothing that breaks what the gateway does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from proxy import server
from qos.tc.change.lock import LOCKS

UNIT = Path(__file__).parent.parent / "deploy/inferlane.service"
# systemd.exec(5): each of these takes away something that the gateway, its helper or a GPU's driver needs.
BREAKS = {
    "MemoryDenyWriteExecute": "CUDA, TensorRT and libffi make code at run time",
    "PrivateDevices": "GPUs are devices",
    "DevicePolicy": "GPUs are devices",
    "ProtectClock": "implies DeviceAllow=, and with it that no other device is allowed",
    "ProcSubset": "/proc/sys/kernel/random/boot_id and /proc/cpuinfo",
    "PrivateUsers": "CAP_NET_ADMIN must be one over the host's network",
    "PrivateNetwork": "a gateway has one",
    "RootDirectory": "models and libraries",
}


def settings() -> dict[str, list[str]]:
    """Of the section [Service]: each key with its values, in order."""
    section, found = "", defaultdict(list)
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif "=" in line and not line.startswith("#") and section == "[Service]":
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def test_every_key_says_one_thing_once():
    assert {key: values for key, values in settings().items() if len(values) != 1} == {}


def test_it_has_two_capabilities_and_can_get_no_third():
    unit = settings()
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == ["CAP_NET_ADMIN CAP_BPF"]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["User"] != ["root"]
    assert "CAP_NET_BIND_SERVICE" in UNIT.read_text(encoding="utf-8")  # the hint for ports below 1024


def test_books_and_locks_lie_where_the_command_looks():
    unit = settings()
    assert unit["StateDirectory"] == [Path("/var/lib/inferlane").name]
    assert Path("/run") / unit["RuntimeDirectory"][0] == LOCKS
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]


def test_a_reload_and_a_stop_reach_the_gateway_alone_and_leave_it_its_time():
    unit = settings()
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit["KillMode"] == ["mixed"]
    assert int(unit["TimeoutStopSec"][0].removesuffix("s")) > server.DRAIN_S


def test_netlink_and_every_transport_are_allowed():
    families = settings()["RestrictAddressFamilies"][0].split()
    assert sorted(families) == ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"]


def test_bpf_is_allowed_beside_the_calls_of_services():
    assert settings()["SystemCallFilter"] == ["@system-service bpf"]


@pytest.mark.parametrize("key", BREAKS)
def test_nothing_hardens_it_to_death(key):
    assert key not in settings(), BREAKS[key]


def test_what_it_leaves_out_it_explains():
    comments = " ".join(line for line in UNIT.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for key in ("MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock", "ProcSubset", "PrivateUsers"):
        assert f"{key}=" in comments


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_all_of_it(tmp_path):
    """`verify` wants the program to exist; nothing of this starts it."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text(encoding="utf-8")))
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
