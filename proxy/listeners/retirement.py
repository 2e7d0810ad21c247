# SPDX-License-Identifier: Apache-2.0
"""Connections of a worker that others replace: served for as long as their clients need to move, then closed.

Nobody's request may fail because of it. So a client hears that it shall move (HTTP/3: GOAWAY) and everything that it
asks meanwhile is answered; its connection is closed when it has been quiet for longer than a request needs to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

__all__ = ["HANDSHAKE_S", "QUIET_S", "Retirement", "Retiring", "due"]

QUIET_S = 1.0
"""A connection on which nothing was heard for so long, and nothing is in flight, has no request on its way."""
HANDSHAKE_S = 10.0
"""A handshake that was begun here may end here, within this time."""
_LOOK_S = 0.1


class Retiring(Protocol):
    """One connection."""

    heard: float
    """When its newest datagram came, monotonic seconds."""

    @property
    def settled(self) -> bool:
        """Whether nothing is in flight, and the client has all that was sent."""
        ...

    @property
    def speaks(self) -> bool:
        """Whether its handshake is over."""
        ...

    def retire(self) -> None:
        """Have its client move."""
        ...


Connection = TypeVar("Connection", bound=Retiring)


def due(now: float, retired: float, connection: Retiring) -> str:
    """What to do with a connection: "close" it or have it "move"; nothing ("") in a handshake."""
    if not connection.speaks:
        return "close" if now - max(retired, connection.heard) >= HANDSHAKE_S else ""
    quiet = now - max(retired, connection.heard) >= QUIET_S
    return "close" if quiet and connection.settled else "move"


class Retirement:
    """Looks at the connections of one socket, from now on until `end`.

    connections: all of them, as they are now; close: says goodbye to one.
    """

    def __init__(
        self, connections: Collection[Connection], close: Callable[[Connection], None], *, clock: Callable[[], float]
    ) -> None:
        self._connections: Collection[Retiring] = connections
        self._close: Callable[..., None] = close
        self._clock = clock
        self._began = clock()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def __repr__(self) -> str:
        return f"<Retirement of {len(self._connections)}>"

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)
        now = self._clock()
        for each in tuple(self._connections):
            match due(now, self._began, each):
                case "close":
                    self._close(each)
                case "move":
                    each.retire()
