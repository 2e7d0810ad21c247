# SPDX-License-Identifier: Apache-2.0
"""The other end of one connection: whether it still answers, and who waits for which answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.messages import EncodedReply
from inferlane.transports.silence import Silence

__all__ = ["Answer", "Peer", "settle"]

Answer = asyncio.Future[EncodedReply]


class Peer:
    """One gateway as one connection sees it. Requests are known by a key of the transport's choice."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: ConnectionFailed | None = None
        """Why the connection is over; None: it lives."""
        self._answers: dict[int, Answer] = {}
        self._silence = Silence(monotonic())

    def __repr__(self) -> str:
        return f"<Peer {self.name} {self.error or 'alive'}, {len(self._answers)} in flight>"

    @property
    def alive(self) -> bool:
        """Whether a new request has a chance here."""
        return self.error is None and not self.dead

    @property
    def dead(self) -> bool:
        """Whether it was asked and kept silent for too long."""
        return self._silence.dead(monotonic())

    @property
    def needs_ping(self) -> bool:
        """Whether requests wait in a silence that a NAT on the way might take for the end."""
        return bool(self._answers) and self._silence.quiet(monotonic())

    def asked(self) -> None:
        """Something goes out that must be acknowledged."""
        self._silence.asked(monotonic())

    def heard(self) -> None:
        """Something came."""
        self._silence.heard(monotonic())

    def expect(self, key: int) -> Answer:
        """A request goes out: where its answer will be. Raises ConnectionFailed when the connection is over."""
        if self.error is not None:
            raise ConnectionFailed(str(self.error))
        self.asked()
        answer: Answer = asyncio.get_running_loop().create_future()
        self._answers[key] = answer
        return answer

    async def answer(self, key: int, expected: Answer, abandon: Callable[[int], None]) -> EncodedReply:
        """Wait for it. When the wait is cut short on a living connection, `abandon` tells the peer."""
        try:
            return await expected
        finally:
            del self._answers[key]
            if not expected.cancelled():
                expected.exception()  # seen, though a cancellation may have come in the same moment
            elif self.error is None:
                abandon(key)

    def end(self, why: str, *, moved: bool = False) -> bool:
        """The connection is over and everybody who waits is told. False: it already was.

        moved: who closed it had nothing in flight, so nothing was done for those who wait.
        """
        if self.error is not None:
            return False
        self.error = ConnectionFailed(f"{self.name}: {why}")
        for answer in self._answers.values():
            settle(answer, Refused(Reason.DRAINING, str(self.error)) if moved else ConnectionFailed(str(self.error)))
        return True


def settle(answer: Answer, outcome: EncodedReply | Exception) -> None:
    """Hand over what came of a request, unless its waiter has left."""
    if answer.done():
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
