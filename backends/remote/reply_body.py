# SPDX-License-Identifier: Apache-2.0
"""A reply's body in pieces, as they come from its connection; whoever has it closes the one with the other."""

from __future__ import annotations

from math import inf
from typing import Protocol

from inferlane.errors import Reason, Refused

__all__ = ["ReplyBody", "Source"]


class Source(Protocol):
    """Where the pieces come from."""

    @property
    def first(self) -> bytes:
        """What of the body was read first and is not taken yet."""
        ...

    async def next_piece(self, until: float) -> bytes | None:
        """The next piece; b"" at the end; None where an event stream says nothing until then, monotonic seconds."""
        ...

    def close(self) -> None:
        """No more of it is wanted."""
        ...


class ReplyBody:
    """A reply's body in pieces, as they come. Raises Refused where it breaks off; dropped unread, it closes."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Source) -> None:
        self._connection: Source | None = connection

    def __repr__(self) -> str:
        return f"<ReplyBody {'over' if self._connection is None else 'open'}>"

    def __aiter__(self) -> ReplyBody:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.next_until(inf)
        if not piece:
            raise StopAsyncIteration
        return piece

    @property
    def first(self) -> bytes:
        """What came first of it, as long as nothing was taken."""
        return b"" if self._connection is None else self._connection.first

    async def next_until(self, until: float) -> bytes | None:
        """The next piece; b"" at the end; None where an event stream says nothing until then, monotonic seconds."""
        connection = self._connection
        if connection is None:
            return b""
        try:
            piece = await connection.next_piece(until)
        except BaseException:
            self.discard()
            raise
        if piece == b"":
            self._connection = None
        return piece

    async def read_all(self, most: int) -> bytes:
        """All of it. Raises Refused where it is longer than `most` bytes."""
        whole = bytearray()
        async for piece in self:
            whole += piece
            if len(whole) > most:
                self.discard()
                raise Refused(Reason.BACKEND_FAILED, f"the backend's answer is longer than {most} bytes")
        return bytes(whole)

    async def aclose(self) -> None:
        """Break the reply off: the backend learns it from the closed connection."""
        self.discard()

    def discard(self) -> None:
        """The same, at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        # a client that goes away cancels whoever reads this, wherever that waits, and nobody is left to say so
        self.discard()
