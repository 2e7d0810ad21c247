# SPDX-License-Identifier: Apache-2.0
"""A token stream on its way to the client: piece by piece, each clocked, and a client that does not read bounded."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Self

from backends.messages import Pieces
from backends.remote.sse import KEEPALIVE
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered
from proxy.telemetry.finished import Telemetry
from proxy.walk.deadlines import Deadline

__all__ = ["TokenStream"]


class TokenStream:
    """The pieces of a reply; between them `limit` says how long the client may take, or the stream as a whole.

    The backend's silence is its own to bound (backends/remote/sse.py), for there a comment keeps the client waiting.
    """

    def __init__(
        self,
        pieces: Pieces,
        answered: Answered,
        limit: Deadline,
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._pieces = pieces
        self._answered = answered
        self._limit = limit
        self._telemetry = telemetry
        self._clock = clock
        self._promise = answered.traffic_class.stream
        total_s = self._promise.total_s
        self._ends = inf if total_s is None else answered.arrival.timeline.received + total_s
        self._last: float | None = None
        self._with_client = False
        limit.move(self._ends)

    def __repr__(self) -> str:
        return f"<TokenStream {self._answered.pieces} pieces, {'client' if self._with_client else 'backend'} next>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._with_client = False
        self._limit.when = self._ends  # later than a client's time, or as it was
        piece = await self._pieces.__anext__()
        self._clocked(self._clock(), is_answer=piece is not KEEPALIVE)
        return piece

    async def aclose(self) -> None:
        await self._pieces.aclose()

    def late(self) -> Refused:
        """What the client is told when `limit` struck."""
        if self._with_client:
            return Refused(Reason.CANCELLED, f"the client read nothing for {self._promise.stall_s:g} s")
        return Refused(Reason.DEADLINE, f"the stream took longer than the {self._promise.total_s:g} s of its class")

    def _clocked(self, now: float, *, is_answer: bool) -> None:
        """A piece goes to the client; a comment that only keeps it waiting is no token."""
        answered = self._answered
        if is_answer:
            if self._last is None:
                self._telemetry.first_piece(answered, now - answered.arrival.timeline.received)
            else:
                self._telemetry.piece_sent(answered, now - self._last)
            self._last = now
            answered.pieces += 1
        self._with_client = True
        self._limit.move(min(now + self._promise.stall_s, self._ends))
