# SPDX-License-Identifier: Apache-2.0
"""The one error of the doors to the kernel: what was tried, what the kernel said, and what helps."""

from __future__ import annotations

__all__ = ["KernelError"]


class KernelError(Exception):
    """The kernel refused, or a door to it did."""

    def __init__(self, errno: int, said: str, doing: str) -> None:
        self.errno = errno
        """As errno(3)."""
        self.said = said
        """The kernel's own words where it has any (extended acknowledgement), and the remedy where one is known."""
        self.doing = doing
        """What was tried, and where."""
        super().__init__(f"{doing}: {said}")
