# SPDX-License-Identifier: Apache-2.0
"""What each test may ask of the machine, and how long Hypothesis searches.

A test marked `needs_X` is skipped, with the reason in the summary, where the machine lacks X. With
INFERLANE_MUST_RUN=root,qemu (a comma-separated list, as .ci/run sets it) such a skip is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Need:
    """Something a test asks of the machine."""

    met: Callable[[], bool]
    remedy: str


NEEDS = {
    "root": Need(lambda: os.geteuid() == 0, "run the tests as root"),
    "qemu": Need(lambda: shutil.which("qemu-system-x86_64") is not None, "apt-get install qemu-system-x86 kmod cpio"),
    "gpu": Need(lambda: Path("/dev/nvidiactl").exists(), "run on a machine with an NVIDIA GPU"),
    "model": Need((ROOT / "models/magika/model.onnx").is_file, "make model"),
    "gtlsclient": Need(lambda: shutil.which("gtlsclient") is not None, "apt-get install ngtcp2-client"),
}

# Deadlines are off everywhere: a slow machine is not a wrong answer.
settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=100, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("long", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, or fail where it must."""
    must_run = set(filter(None, os.environ.get("INFERLANE_MUST_RUN", "").split(",")))
    if unknown := must_run - NEEDS.keys():
        raise pytest.UsageError(f"INFERLANE_MUST_RUN: {', '.join(sorted(unknown))} is none of {', '.join(NEEDS)}")
    for name, need in NEEDS.items():
        if item.get_closest_marker(f"needs_{name}") is None or need.met():
            continue
        message = f"needs {name}, which this machine lacks: {need.remedy}"
        if name in must_run:
            pytest.fail(f"{message} (INFERLANE_MUST_RUN asks for it)", pytrace=False)
        pytest.skip(message)
