# SPDX-License-Identifier: Apache-2.0
"""A backend's event stream piece by piece as it is made: a silence is filled with comments, and is not endless.

Nothing is gathered: what one read brought goes on as one piece. Server-sent events: HTML Living Standard, section 9.2.
"""

from __future__ import annotations

import re
from time import monotonic

from backends.remote.reply_body import ReplyBody
from inferlane.errors import Reason, Refused
from qos.traffic_class import StreamPromise

__all__ = ["KEEPALIVE", "EventStream", "said_done"]

KEEPALIVE = b": keep-alive\n\n"
"""A line that begins with a colon means nothing to the client, and tells whatever is on the way that this is alive."""
_TAIL = 64
"""Bytes of the stream's end that are remembered: `data: [DONE]` and the line ends around it."""
_BETWEEN_EVENTS = (b"\n\n", b"\r\n\r\n", b"\r\r")
# A line of its own: in JSON a line end is written as an escape. Behind it there may be an `id`, or a server's comment.
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][ \t]*(?:[\r\n]|\Z)").search


def said_done(end: bytes) -> bool:
    """Whether a stream of OpenAI's API ends as one that is whole does."""
    return _DONE(end) is not None


class EventStream:
    """The body of a streaming reply. Raises Refused where it stalls, or breaks off: never a clean end after that.

    promise: how long it may be silent; says_done: it is whole only with `data: [DONE]` as its last event.
    """

    __slots__ = ("_body", "_comment_due", "_promise", "_says_done", "_silent_since", "_tail")

    def __init__(self, body: ReplyBody, promise: StreamPromise, *, says_done: bool) -> None:
        self._body = body
        self._promise = promise
        self._says_done = says_done
        self._silent_since: float | None = None
        """Monotonic seconds; None: nobody waits, and a client that reads slowly is not the backend's silence."""
        self._comment_due = 0.0
        self._tail = b""

    def __repr__(self) -> str:
        return f"<EventStream ...{self._tail[-20:]!r}>"

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        if self._silent_since is None:
            self._silent_since = monotonic()
            self._comment_due = self._silent_since + self._promise.keepalive_s
        stalled = self._silent_since + self._promise.stall_s
        until = min(stalled, self._comment_due) if self._tail.endswith(_BETWEEN_EVENTS) else stalled
        piece = await self._body.next_until(until)
        if piece is None:
            return await self._silence(over=until == stalled)
        self._silent_since = None
        if not piece:
            self._check_end()
            raise StopAsyncIteration
        self._tail = piece[-_TAIL:] if len(piece) >= _TAIL else (self._tail + piece)[-_TAIL:]
        return piece

    async def aclose(self) -> None:
        """Break it off: the backend learns it from the closed connection."""
        await self._body.aclose()

    async def _silence(self, *, over: bool) -> bytes:
        if over:
            await self._body.aclose()
            raise Refused(Reason.STALLED, f"the backend said nothing more for {self._promise.stall_s:g} s")
        self._comment_due += self._promise.keepalive_s
        return KEEPALIVE

    def _check_end(self) -> None:
        if self._says_done and not said_done(self._tail):
            raise Refused(Reason.BACKEND_FAILED, "the backend ended its stream without data: [DONE]")
