# SPDX-License-Identifier: Apache-2.0
"""Notices QUIC clients that vanished while something works for them: they are asked, and given up when silent for long.

And those that are there, but do not take their replies (proxy/quic/untaken.py).

QUIC would wait for its idle timeout, a minute, as long as the gateway has nothing to send that could stay unanswered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar

__all__ = ["ASKED_S", "GONE_S", "Vigil", "Watched", "verdict"]

ASKED_S = 1.0
"""A client silent for so long is asked, each second again; one that is there acknowledges within a round trip."""
GONE_S = 5.0
"""One silent for so long is gone. Longer than a phone needs from one network to another, shorter than what a GPU
that works for nobody is worth."""
_LOOK_S = 0.5


class Watched(Protocol):
    """One connection."""

    heard: float
    """When its newest datagram came, monotonic seconds."""

    @property
    def busy(self) -> bool:
        """Whether something works for it."""
        ...

    def ask(self) -> None:
        """Have the client say that it is there."""
        ...

    def let_go_of_untaken(self, now: float) -> None:
        """Drop replies that it does not take."""
        ...


Peer = TypeVar("Peer", bound=Watched)


def verdict(silent_s: float) -> str:
    """What is due for a busy connection that was silent for so long: nothing (""), "ask", or "gone"."""
    if silent_s >= GONE_S:
        return "gone"
    return "ask" if silent_s >= ASKED_S else ""


class Vigil(Generic[Peer]):
    """Looks at the connections of one socket twice a second while there are any.

    peers: all of them, as they are now; gone: told of each that is given up.
    """

    def __init__(self, peers: Collection[Peer], gone: Callable[[Peer], None], *, clock: Callable[[], float]) -> None:
        self._peers = peers
        self._gone = gone
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Vigil {'watching' if self._timer else 'at rest'}>"

    def begin(self) -> None:
        """A connection has come."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._on_timer)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock()
        for peer in tuple(self._peers):
            match verdict(now - peer.heard) if peer.busy else "":
                case "gone":
                    self._gone(peer)
                    continue
                case "ask":
                    peer.ask()
            peer.let_go_of_untaken(now)
        if self._peers:
            self.begin()
