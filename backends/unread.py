# SPDX-License-Identifier: Apache-2.0
"""How many bytes of request bodies one process holds that nobody has read, and the most that it will.

A window bounds one stream. Clients choose how many streams and connections there are: 16,384 connections of a socket
with 128 streams each could fill 512 GiB without breaking a rule of theirs.
"""

from __future__ import annotations

__all__ = ["MOST_UNREAD", "Unread"]

MOST_UNREAD = 512 << 20
"""Two pools' queues at their fullest (256 MiB each, proxy/walk/gate.py), or 2,000 bodies of the longest that is
gathered before it gets a place; and a machine that runs a gateway has as much to spare."""


class Unread:
    """The bodies' common account."""

    __slots__ = ("_most", "bytes")

    def __init__(self, most: int = MOST_UNREAD) -> None:
        self._most = most
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<Unread {self.bytes} of {self._most} bytes>"

    def take(self, count: int) -> bool:
        """So many more came. False: there is no room for them, and they are not counted."""
        if self.bytes + count > self._most:
            return False
        self.bytes += count
        return True

    def give(self, count: int) -> None:
        """So many were read, or dropped."""
        self.bytes -= count
