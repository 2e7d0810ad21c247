# SPDX-License-Identifier: Apache-2.0
"""All sockets of a gateway, bound once by the supervisor, in the order of the config, and kept for as long as it lives.

Closing one of a SO_REUSEPORT group would give another its number; so a worker that ends leaves its place, and its
replacement reads on from there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from itertools import chain

import msgspec

from proxy.config.settings import ListenerSettings
from proxy.listeners.bound import BoundAddress, Place, bind_address
from proxy.steering.group import Group
from proxy.steering.program import Steering

__all__ = ["HandedAddress", "Sockets"]


class HandedAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Descriptors of what is bound at one address."""

    udp: list[int]
    """In the order of their places."""
    tcp: int | None


class Sockets:
    """By listener, its addresses. Made by `bind`."""

    def __init__(self, bound: dict[str, list[BoundAddress]]) -> None:
        self._bound = bound

    def __repr__(self) -> str:
        return f"<Sockets {self.addresses!r}>"

    @classmethod
    def bind(cls, listeners: Sequence[ListenerSettings], *, places: int) -> Sockets:
        """Every address of every listener, or none. Raises OSError that names the address. TCP does not listen yet."""
        sockets = cls({})
        try:
            for listener in listeners:
                tcp = "h1" in listener.accept
                udp = bool(listener.accept - {"h1"})
                bound = sockets._bound.setdefault(listener.name, [])
                for each in listener.bind:
                    bound.append(bind_address(each.host, each.port, places=places * udp, tcp=tcp, listening=False))
        except OSError:
            sockets.close()
            raise
        return sockets

    @property
    def addresses(self) -> dict[str, list[tuple[str, int]]]:
        """By listener, where it is bound; port 0 has become a real one."""
        return {name: [each.at(0).address for each in bound] for name, bound in self._bound.items()}

    def grow(self, places: int) -> None:
        """Have so many places at every address. Raises OSError; what was added before it stays."""
        for each in self._each():
            each.grow(places)

    def handed(self) -> dict[str, list[HandedAddress]]:
        """For another program in this process."""
        return {name: [_handed(each) for each in bound] for name, bound in self._bound.items()}

    @classmethod
    def adopt(cls, handed: Mapping[str, Sequence[HandedAddress]]) -> Sockets:
        """Instead of `bind`."""
        return cls({name: [_adopted(each) for each in addresses] for name, addresses in handed.items()})

    def at(self, place: int) -> dict[str, list[tuple[int | None, int | None]]]:
        """Descriptors for the worker at a place."""
        return {name: [_descriptors(each.at(place)) for each in bound] for name, bound in self._bound.items()}

    def steer(self, steering: Steering) -> None:
        """Have the kernel share out datagrams so from now on. Raises OSError where it does not take the program."""
        for each in self._each():
            if each.group is not None:
                each.group.steer(steering)

    def hang_up(self) -> None:
        """Let go of TCP: once no worker listens any more either, nobody can connect."""
        for each in self._each():
            if each.tcp is not None:
                each.tcp.close()

    def close(self) -> None:
        """Let go of all."""
        for each in self._each():
            each.close()

    def _each(self) -> list[BoundAddress]:
        return list(chain.from_iterable(self._bound.values()))


def _descriptors(place: Place) -> tuple[int | None, int | None]:
    return (
        None if place.udp is None else place.udp.fileno(),
        None if place.tcp is None else place.tcp.fileno(),
    )


def _handed(bound: BoundAddress) -> HandedAddress:
    udp = [] if bound.group is None else [each.fileno() for each in bound.group.sockets]
    tcp = None if bound.tcp is None else bound.tcp.fileno()
    for fd in (*udp, *([] if tcp is None else [tcp])):
        os.set_inheritable(fd, True)
    return HandedAddress(udp=udp, tcp=tcp)


def _adopted(handed: HandedAddress) -> BoundAddress:
    group = Group([_socket(fd) for fd in handed.udp]) if handed.udp else None
    return BoundAddress(group, None if handed.tcp is None else _socket(handed.tcp))


def _socket(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
