# SPDX-License-Identifier: Apache-2.0
"""Where the next generation finds room: numbers in a row that no living one has. Pure."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["free_range"]


def free_range(taken: Iterable[range], count: int) -> range:
    """The lowest `count` numbers in a row that none of these has."""
    first = 0
    for each in sorted(taken, key=lambda each: each.start):
        if first + count <= each.start:
            break
        first = max(first, each.stop)
    return range(first, first + count)
