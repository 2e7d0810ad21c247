# SPDX-License-Identifier: Apache-2.0
"""Datagrams that a socket had no room for: few, for a moment, the oldest dropped first. Pure.

A device or a buffer that is full for a moment should not cost a whole flight; one that stays full is congestion, and
what waits longer is repeated by QUIC or by the client anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from proxy.sockets.addresses import Address
from qos.marking import Mark

__all__ = ["LONGEST_S", "MOST_BYTES", "Backlog", "Waiting"]

MOST_BYTES = 256 * 1024
"""2 ms at 1 Gbit/s: what is worth waiting for."""
LONGEST_S = 0.1
_OVERHEAD = 64  # so that empty datagrams are not free


class Waiting(NamedTuple):
    """Datagrams that go together."""

    datagrams: Sequence[bytes]
    address: Address
    mark: Mark
    since: float
    """Monotonic seconds."""

    @property
    def size(self) -> int:
        """As the bound counts it."""
        return sum(map(len, self.datagrams)) + _OVERHEAD * len(self.datagrams)


class Backlog:
    """First in, first out."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0
        self.dropped = 0
        """Datagrams."""

    def __repr__(self) -> str:
        return f"<Backlog of {len(self._waiting)} trains, {self._bytes} bytes, {self.dropped} dropped>"

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, each: Waiting) -> None:
        """One more at the end; the oldest make room."""
        self._waiting.append(each)
        self._bytes += each.size
        while self._bytes > self._most_bytes:
            self._drop()

    def first(self, now: float) -> Waiting | None:
        """Whose turn it is; what has waited too long is dropped."""
        while self._waiting and now - self._waiting[0].since > LONGEST_S:
            self._drop()
        return self._waiting[0] if self._waiting else None

    def take(self) -> None:
        """The first has gone."""
        self._bytes -= self._waiting.popleft().size

    def _drop(self) -> None:
        self.dropped += len(self._waiting[0].datagrams)
        self.take()
