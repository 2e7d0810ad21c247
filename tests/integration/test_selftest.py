# SPDX-License-Identifier: Apache-2.0
"""`inferlane qos selftest` as somebody runs it on a box of theirs: a verdict, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qos.selftest.lab import PREFIX, lab
from qos.selftest.trial import TrialError, try_classes
from qos.settings import ClassSettings
from qos.tc.policy import link_policy
from qos.tc.settings import SafetySettings

pytestmark = pytest.mark.needs_root
COMMAND = [sys.executable, "-m", "proxy", "qos", "selftest"]
NAMESPACES = Path("/run/netns")


def ours() -> set[str]:
    return {each.name for each in NAMESPACES.glob(f"{PREFIX}*")} if NAMESPACES.exists() else set()


def test_a_full_link_is_measured_with_and_without_the_plan():
    before = ours()
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, timeout=110, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["holds"] else 1)
    idle, full, planned = found["phases"]
    assert [each["name"] for each in found["phases"]] == ["idle", "full, one FIFO", "full, planned"]
    assert set(planned["classes"]) == {"realtime", "interactive", "batch", "background"}
    # No figure is asserted for itself on a shared machine: only what the plan is for.
    assert planned["classes"]["realtime"]["p99_s"] < full["classes"]["realtime"]["p99_s"] / 2
    assert planned["bits_per_s"] > 5 * idle["bits_per_s"]
    assert planned["classes"]["realtime"]["sent"] > 100
    assert ours() == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_trial_that_is_ended_early_leaves_nothing_behind(how):
    before = ours()
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert PREFIX in process.stderr.readline()
    process.send_signal(how)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(30) != 0
    assert ours() == before


def test_what_a_killed_trial_left_is_swept_up_by_the_next():
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert PREFIX in process.stderr.readline()
    process.kill()
    process.wait(30)
    process.stderr.close()
    left = {each for each in ours() if each.startswith(f"{PREFIX}{process.pid}-")}
    assert len(left) == 3
    with lab(20_000_000) as built:
        assert not left & ours()
        assert {built.src, built.hop, built.dst} <= ours()
    assert str(os.getpid()) not in "".join(ours())


def test_one_class_alone_cannot_be_tried():
    only = ClassSettings(name="only", dscp=46, deadline=1.0, default=True)
    with pytest.raises(TrialError, match="two classes or more with marks of their own"):
        try_classes(link_policy([only], (), (), SafetySettings()))


def test_without_rights_it_says_what_it_needs():
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-sys_admin,-net_admin", *COMMAND],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "root" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_flood_is_refused_with_the_known_ones():
    done = subprocess.run([*COMMAND, "--flood", "icmp"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "allowed: udp, train, tcp" in done.stderr
