# SPDX-License-Identifier: Apache-2.0
"""Collects this folder in the guest only: elsewhere the kernel may lack what its tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_GUEST = os.environ.get("INFERLANE_GUEST") == "1"
"""Set by ./guest. On the machine itself tests/integration/test_full_kernel.py runs all of these in the guest."""
ELSEWHERE = "tests/kernel runs in a guest only: make test-kernel, or some of it as tests/kernel/test_kinds.py tells"

collect_ignore_glob = [] if IN_GUEST else ["test_*.py"]


def pytest_report_header() -> str | None:
    """Say to who asks for this folder why it is empty."""
    return None if IN_GUEST else ELSEWHERE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a file that was asked for by its name: pytest ignores none of those."""
    if not IN_GUEST and any(item.path.is_relative_to(HERE) for item in items):
        raise pytest.UsageError(ELSEWHERE)
