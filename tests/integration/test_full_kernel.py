# SPDX-License-Identifier: Apache-2.0
"""All of tests/kernel, in one guest with Debian's kernel: the machine's own may lack what they need.

`make test-kernel` runs this file alone and shows the guest's lines as they come.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# The guest is slow, not stuck: a test in it may take this long. What boots it has a deadline of its own, LIMIT_S.
PYTEST = [sys.executable, "-m", "pytest", "tests/kernel", "--override-ini=timeout=300"]
ONLY_PASSED = re.compile(r"=+ [1-9]\d* passed in .*=+")


def lines_of_the_guest() -> Iterator[str]:
    """What the boot and the tests write, then "status N". The guest ends with us, however we end."""
    command = ["setpriv", "--pdeathsig", "TERM", ROOT / "tests/kernel/boot", *PYTEST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as guest:
        try:
            assert guest.stdout is not None
            yield from map(str.rstrip, guest.stdout)
        finally:
            guest.terminate()
    yield f"status {guest.returncode}"


@pytest.mark.needs_qemu
@pytest.mark.timeout(900)
def test_in_the_guest_every_test_passes_and_none_is_skipped():
    lines = []
    for line in lines_of_the_guest():
        print(line, flush=True)  # noqa: T201  # shown at once by --capture=no, and on a failure
        lines.append(line)
    assert lines[-1] == "status 0"
    assert any(map(ONLY_PASSED.fullmatch, lines)), "skipped, or none ran"
