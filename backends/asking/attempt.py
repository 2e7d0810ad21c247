# SPDX-License-Identifier: Apache-2.0
"""One attempt at one endpoint, and the place it holds until the whole of its answer is handed on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, Self

from backends.asking.verdict import outcome_of
from backends.endpoint import Endpoint
from backends.messages import Pieces, Reply, Request
from backends.outcome import Ending, Outcome

__all__ = ["Attempt", "Copy", "Place"]

_CLIENTS_TOO = (Ending.TIMED_OUT, Ending.CANCELLED, Ending.BLAMELESS)
"""What may be the endpoint's doing as well as that of a client whose body is still on its way."""


class Place(Protocol):
    """One of an endpoint's places, taken for one request."""

    @property
    def endpoint(self) -> Endpoint:
        """Whose it is."""
        ...

    def leave(self, outcome: Outcome) -> None:
        """Give it back, once; the next in order gets it."""
        ...


class Copy:
    """A request at one endpoint. request: asked as it is; what the endpoint tells of time is on its own timeline."""

    __slots__ = ("clock", "place", "request", "result")

    def __init__(self, place: Place, request: Request, clock: Callable[[], float]) -> None:
        self.place = place
        self.request = request
        self.clock = clock
        self.result: Reply | BaseException | None = None
        request.timeline.dispatched, request.timeline.first_byte = clock(), None

    def __repr__(self) -> str:
        state = "asking" if self.result is None else type(self.result).__name__
        return f"<Copy at {self.place.endpoint.name}, {state}>"

    async def ask(self) -> Reply:
        """The endpoint's answer, or what it fails with."""
        try:
            self.result = reply = await self.place.endpoint.backend.infer(self.request)
        except BaseException as error:
            self.result = error
            raise
        timeline = self.request.timeline
        if timeline.first_byte is None:
            timeline.first_byte = self.clock()
        return reply

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.clock() >= self.request.deadline

    def outcome(self, broken: BaseException | None = None) -> Outcome:
        """How it went, as of now. broken: what its answer's body ended with."""
        result = broken or self.result or asyncio.CancelledError()  # cancelled before it began
        now, timeline = self.clock(), self.request.timeline
        outcome = outcome_of(
            result,
            dispatched=now if timeline.dispatched is None else timeline.dispatched,
            first_byte=timeline.first_byte,
            now=now,
            deadline=self.request.deadline,
        )
        if outcome.ending in _CLIENTS_TOO and not isinstance(result, Reply) and not self.request.body.complete:
            # The client did not send all of it: slow or broken uploads would eject one endpoint after the other.
            return outcome._replace(ending=Ending.CANCELLED, latency_s=0.0)
        return outcome


class Attempt:
    """What `Attempts.infer` found: the answer, and where it came from.

    The caller hands the reply on, closes its body, and then calls `leave` once. count: endpoints that were asked on
    the way to this answer; hedged: whether two of them at once.
    """

    __slots__ = ("_body", "_copy", "_left", "count", "hedged", "reply")

    def __init__(self, copy: Copy, reply: Reply, *, count: int, hedged: bool, left: bool = False) -> None:
        self._copy = copy
        self._left = left
        self.reply = reply
        self.count = count
        self.hedged = hedged
        self._body: _Watched | None = None
        if not isinstance(reply.body, bytes):
            self._body = reply.body = _Watched(reply.body)

    def __repr__(self) -> str:
        return f"<Attempt {self.count} at {self.endpoint}, status {self.reply.status}{', left' if self._left else ''}>"

    @property
    def endpoint(self) -> str:
        """The name of the one that answered."""
        return self._copy.place.endpoint.name

    def leave(self, error: BaseException | None = None) -> None:
        """The place is free again. error: what ended the reply before its end.

        Once the first byte is here only the endpoint itself can spoil what it is credited with: by a body that breaks
        off, stalls, or is not whole by the deadline. A client that leaves or does not read is none of its faults.
        """
        if self._left:
            return
        self._left = True
        broken = self._body.error if error is not None and self._body is not None else None
        if isinstance(broken, asyncio.CancelledError) and (self.reply.streaming or not self._copy.late):
            broken = None
        self._copy.place.leave(self._copy.outcome(broken))


class _Watched:
    """A body in pieces that remembers what its backend broke it off with."""

    __slots__ = ("_pieces", "error")

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.error: BaseException | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._pieces.__anext__()
        except StopAsyncIteration:
            raise
        except BaseException as error:
            self.error = error
            raise

    async def aclose(self) -> None:
        await self._pieces.aclose()
