# SPDX-License-Identifier: Apache-2.0
"""What is given up is gone for this process and all that it starts; what files and low ports need stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

from proxy.privileges import Capability, effective, kept

FILES = {Capability.DAC_OVERRIDE, Capability.DAC_READ_SEARCH}
LOST = r"""
import subprocess, sys
from proxy.privileges import drop
drop(set(map(int, sys.argv[1:])))
show = "import json, re; print(json.dumps(dict(re.findall('(\\w+):\t(.*)', open('/proc/self/status').read()))))"
exec(show)
sys.stdout.flush()
subprocess.run([sys.executable, "-c", show], check=True)
"""


def after_drop(*keep: int, before: Sequence[str] = ()) -> list[dict[str, str]]:
    """What a process that dropped all but these has, and a program that it starts."""
    done = subprocess.run(
        [*before, sys.executable, "-c", LOST, *map(str, keep)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("ports", "low"), [([4433, 9433], set()), ([0], set()), ([4433, 443], {10}), ([1023], {10}), ([1024], set())]
)
def test_only_a_low_port_needs_a_capability(ports, low):
    assert kept(ports, root=False) == low
    assert kept(ports, root=True) == low | FILES


def test_nothing_is_left_and_nothing_comes_back():
    for has in after_drop():
        assert {has[each] for each in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert has["NoNewPrivs"] == "1"


@pytest.mark.needs_root
def test_what_is_kept_is_all_that_a_started_program_could_get():
    mask = f"{1 << Capability.NET_BIND_SERVICE | 1 << Capability.DAC_OVERRIDE:016x}"
    for has in after_drop(Capability.NET_BIND_SERVICE, Capability.DAC_OVERRIDE):
        assert (has["CapEff"], has["CapPrm"], has["CapBnd"]) == (mask, mask, mask)


def test_keeping_what_one_never_had_is_no_error():
    """As an ordinary user with a low port: binding it will say what is missing."""
    never = 63
    assert all(has["CapEff"] == "0" * 16 for has in after_drop(never))


@pytest.mark.needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_root_in_a_container_that_may_not_shrink_its_bounds_loses_everything_all_the_same():
    bounded = ["setpriv", "--bounding-set", "-setpcap", "--inh-caps", "-all"]
    for has in after_drop(before=bounded):
        assert {has[each] for each in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}


@pytest.mark.needs_root
def test_root_has_what_the_helper_needs():
    assert {Capability.NET_ADMIN, Capability.BPF} <= effective()


def test_what_is_effective_is_read_from_the_kernel():
    assert bool(effective()) == (os.geteuid() == 0)
