# SPDX-License-Identifier: Apache-2.0
"""The sockets of a listener's address, bound before anybody is served: a group for UDP and one for TCP at one port."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import NamedTuple

from proxy.bind import bind_tcp
from proxy.sockets.binding import bind
from proxy.steering.group import Group

__all__ = ["BoundAddress", "Place", "bind_address"]

_TRIES = 20
"""For a port number that is free for UDP and for TCP."""


class Place(NamedTuple):
    """What one worker has of an address: a UDP socket of its own, and the TCP socket that all share."""

    udp: socket.socket | None
    tcp: socket.socket | None

    @property
    def address(self) -> tuple[str, int]:
        """Where they are bound."""
        host, port = next(sock for sock in self if sock is not None).getsockname()[:2]
        return host, port


@dataclass(frozen=True, slots=True)
class BoundAddress:
    """All of it: who binds it keeps it as long as it lives."""

    group: Group | None
    tcp: socket.socket | None

    def at(self, place: int) -> Place:
        """What the worker at this place gets."""
        return Place(None if self.group is None else self.group.sockets[place], self.tcp)

    def grow(self, places: int) -> None:
        """Have so many places, where there were fewer. Raises OSError; those that were added before it stay."""
        if self.group is not None and len(self.group.sockets) < places:
            self.group.grow(places, bind=bind)

    def close(self) -> None:
        """Let go of the port."""
        if self.group is not None:
            self.group.close()
        if self.tcp is not None:
            self.tcp.close()


def bind_address(host: str, port: int, *, places: int, tcp: bool, listening: bool = True) -> BoundAddress:
    """Bind one address, with as many UDP sockets as there are places; OSError names it.

    For port 0, the kernel chooses for UDP, and TCP gets the same, or both try again. listening: TCP clients may connect
    from now on; else only the port is held.
    """
    for left in reversed(range(_TRIES)):
        group = Group.bind(host, port, places, bind=bind) if places else None
        if not tcp:
            return BoundAddress(group, None)
        try:
            number = port if group is None else group.address[1]
            return BoundAddress(group, bind_tcp(host, number, listening=listening))
        except OSError as error:
            if group is not None:
                group.close()
            if port or not left or error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError  # the last try returns or raises
