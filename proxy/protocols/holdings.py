# SPDX-License-Identifier: Apache-2.0
"""What the datagram servers of one listener hold together: messages that arrive in parts, and replies kept for repeats.

Each QUIC connection has a server of its own, so a bound of each would be multiplied by as many as there are. The oldest
leaves first, whoever's it is: its client has had the most time to repeat or to receive it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["MAX_KEPT_BYTES", "MAX_REASSEMBLY_BYTES", "Holdings", "Key", "Owner", "Shelf"]

Key = tuple[Hashable, int]
"""Peer and request id."""

MAX_REASSEMBLY_BYTES = 32 << 20
MAX_KEPT_BYTES = 16 << 20


class Owner(Protocol):
    """A server."""

    def drop(self, key: Key) -> None:
        """Let go of something, and take it off its shelf."""
        ...


class Shelf:
    """Things of several owners, in the order in which they came, up to so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[tuple[Owner, Key], tuple[int, float]] = {}
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<Shelf of {len(self._held)}, {self.bytes} of {self._most_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._held)

    def put(self, owner: Owner, key: Key, size: int, since: float) -> None:
        """One more, which is not here yet."""
        self._held[owner, key] = size, since
        self.bytes += size

    def take(self, owner: Owner, key: Key) -> int:
        """It is not to be held any more; its size."""
        size, _ = self._held.pop((owner, key))
        self.bytes -= size
        return size

    def drop_oldest(self) -> None:
        """Have its owner let it go."""
        owner, key = next(iter(self._held))
        owner.drop(key)

    def make_room(self, size: int, before: float) -> bool:
        """Whether so many bytes more fit, at the cost of what came before then, the oldest first."""
        while self.bytes + size > self._most_bytes:
            if not self._held or next(iter(self._held.values()))[1] >= before:
                return False
            self.drop_oldest()
        return True


@dataclass(frozen=True, slots=True)
class Holdings:
    """Of one listener."""

    arriving: Shelf = field(default_factory=lambda: Shelf(MAX_REASSEMBLY_BYTES))
    kept: Shelf = field(default_factory=lambda: Shelf(MAX_KEPT_BYTES))
