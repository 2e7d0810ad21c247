# SPDX-License-Identifier: Apache-2.0
"""Unit tests read what is logged: nothing of an earlier test's logging may still be in force."""

from __future__ import annotations

import pytest
import structlog


@pytest.fixture(autouse=True)
def plain_logging() -> None:
    structlog.reset_defaults()
