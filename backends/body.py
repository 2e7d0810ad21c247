# SPDX-License-Identifier: Apache-2.0
"""A request body while it arrives: bounded, and read at the reader's pace.

The door feeds it, the backend reads it, and what was read is credited to the sender's flow-control
window (`consumed`): so a slow backend slows its own client and nothing is buffered beyond a window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from backends.unread import Unread
from inferlane.errors import Reason, Refused

__all__ = ["Body"]


class Body:
    """Bytes from one door to one backend. One reader at a time.

    limit: most bytes the whole body may have; beyond it `read` raises Refused(TOO_LARGE).
    declared: the content-length, where the sender gave one.
    consumed: called with the number of bytes that the reader took, for the sender's window.
    """

    __slots__ = (
        "_chunks",
        "_consumed",
        "_credited",
        "_error",
        "_limit",
        "_unread",
        "_waiter",
        "declared",
        "ended",
        "received",
    )

    def __init__(
        self, *, limit: int, declared: int | None = None, consumed: Callable[[int], None] | None = None
    ) -> None:
        self._chunks: deque[bytes] = deque()
        self._limit = limit
        self._consumed = consumed
        self._credited = 0
        """Of the bytes that nobody has read yet, those that were credited when they were gathered."""
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._unread: Unread | None = None
        self.declared = declared
        self.received = 0
        self.ended = False

    @classmethod
    def of(cls, data: bytes) -> Body:
        """A body that is already there as a whole."""
        body = cls(limit=len(data))
        body.feed(data, ended=True)
        return body

    def __repr__(self) -> str:
        state = "failed" if self._error else "ended" if self.ended else "open"
        return f"<Body {state}, {self.received} bytes received, {sum(map(len, self._chunks))} unread>"

    def feed(self, data: bytes, *, ended: bool) -> None:
        """The door: more bytes came. Past the limit, and after a failure, they are dropped and credited at once."""
        self.received += len(data)
        if self._error is None and self.received > self._limit:
            self.fail(Refused(Reason.TOO_LARGE, f"the body is longer than the {self._limit} bytes allowed here"))
        if self._error is not None:
            self._credit(len(data))
            return
        if data:
            if self._unread is not None and not self._unread.take(len(data)):
                self.fail(_no_room(self._unread))
                self._credit(len(data))
                return
            self._chunks.append(data)
        self.ended = ended
        self._wake()

    def count_in(self, unread: Unread) -> None:
        """What of it nobody has read counts there from now on; without room there, it fails."""
        waiting = sum(map(len, self._chunks))
        if not unread.take(waiting):
            self.fail(_no_room(unread))
            return
        self._unread = unread

    def fail(self, error: Exception) -> None:
        """Either side: no more will be read, and this is why. Unread bytes go back to the sender's window."""
        if self._error is None:
            self._error = error
        dropped = sum(map(len, self._chunks))
        self._chunks.clear()
        self._credit(dropped)
        self._uncount(dropped)
        self._wake()

    @property
    def complete(self) -> bool:
        """Whether every byte is here, so that reading never waits."""
        return self.ended and self._error is None

    @property
    def drained(self) -> bool:
        """Whether it was read to its end: nothing will come, and nothing is left."""
        return self.ended and not self._chunks

    async def gather(self, most: int) -> None:
        """Wait until the body is whole, or known to have more than `most` bytes. Raises what `fail` was given.

        What waits here is credited: a body longer than its stream's window would never be whole otherwise.
        """
        if self.complete or (self.declared or 0) > most:
            return
        gathered = bytearray()
        try:
            while len(gathered) <= most and (piece := await self._next()):
                gathered += piece
        except BaseException:
            self._uncount(len(gathered))
            raise
        if gathered:
            self._credited = len(gathered)
            self._chunks.appendleft(bytes(gathered))

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises what `fail` was given."""
        piece = await self._next()
        self._uncount(len(piece))
        return piece

    async def _next(self) -> bytes:
        """The same, and it still counts as unread."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        self._credit(len(chunk))
        return chunk

    async def read_all(self) -> bytes:
        """The whole body."""
        if self.ended and len(self._chunks) == 1 and self._error is None:  # most are one packet: nothing to wait for
            whole = self._chunks.popleft()
            self._credit(len(whole))
            self._uncount(len(whole))
            return whole
        first = await self.read()
        if self.ended and not self._chunks and self._error is None:
            return first
        chunks = [first]
        while chunk := await self.read():
            chunks.append(chunk)
        return b"".join(chunks)

    def _credit(self, count: int) -> None:
        before = min(count, self._credited)
        self._credited -= before
        if self._consumed is not None and count > before:
            self._consumed(count - before)

    def _uncount(self, count: int) -> None:
        if self._unread is not None:
            self._unread.give(count)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _no_room(unread: Unread) -> Refused:
    detail = f"{unread.bytes} bytes of request bodies wait in this gateway already"
    return Refused(Reason.QUEUE_FULL, detail, retry_after_s=1.0)
