# SPDX-License-Identifier: Apache-2.0
"""Replies that a client does not take: how long each has stood still. Pure.

A reply that is written waits in its stream for the client's window and acknowledgements, and no walk watches it any
more. A client that only keeps its connection alive would have it kept for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["UNTAKEN_S", "Untaken"]

UNTAKEN_S = 60.0
"""So long may a reply stand still (nginx's send_timeout)."""


class Untaken:
    """The replies of one connection that wait to be taken."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, float]] = {}

    def look(self, waiting: Iterable[tuple[int, int]], now: float) -> list[int]:
        """The streams that stood still for too long; they are forgotten. waiting: each stream with a whole reply that
        is not acknowledged, and its first byte that is not."""
        before, self._seen = self._seen, {}
        late = []
        for stream_id, first in waiting:
            known = before.get(stream_id)
            since = now if known is None or known[0] != first else known[1]
            if now - since >= UNTAKEN_S:
                late.append(stream_id)
            else:
                self._seen[stream_id] = (first, since)
        return late
