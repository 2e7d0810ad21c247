# SPDX-License-Identifier: Apache-2.0
"""Watches a namespace: which device's traffic control somebody else changed, and which devices came, went or moved.

The kernel tells every change to all who listen, with the netlink port that asked for it, so our own are known.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Collection, Iterator
from enum import StrEnum

import msgspec

from qos.tc.errors import KernelError
from qos.tc.kernel.links import parse_link
from qos.tc.kernel.namespace import open_socket
from qos.tc.kernel.observe import TC_MESSAGE

__all__ = ["Event", "Happened", "Monitor", "parse_events"]

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_NEW_LINK, _DELETED_LINK = 16, 17
_TC_TYPES = frozenset({36, 37, 40, 41, 44, 45, 100, 101})  # RTM_{NEW,DEL}{QDISC,TCLASS,TFILTER,CHAIN}
_GROUPS = (1, 4)  # RTNLGRP_LINK, RTNLGRP_TC
_LINK_BODY, _TC_BODY = 16, TC_MESSAGE.size

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_SO_RCVBUFFORCE = 33
_BUFFER = 4 * 2**20  # a thousand classes made by somebody else are about 600 KB
_LONGEST_DATAGRAM = 256 * 1024
_MOST_AT_ONCE = 4096


class Happened(StrEnum):
    """What the kernel tells."""

    TC = "tc"
    """A qdisc, class or filter was made, changed or removed."""
    LINK = "link"
    """A device came, or changed: its name, its state, its alias."""
    GONE = "gone"
    """A device went, and its traffic control with it."""
    LOST = "lost"
    """More than we could hold: anything may have changed."""


class Event(msgspec.Struct, frozen=True):
    """One of them."""

    happened: Happened
    index: int
    """Of the device; 0 where nobody knows."""
    name: str = ""
    """Of the device, as the kernel now says, for LINK and GONE."""
    up: bool = False
    """Whether the device is up, for LINK."""


class Monitor:
    """A socket that becomes readable when something happened. Wait for it with select() or add_reader()."""

    def __init__(self, netns: str | None, *, ignore: Collection[int] = ()) -> None:
        """ignore: netlink ports whose changes of traffic control are our own (`Kernel.port`)."""
        self.ignore = set(ignore)
        self._socket = open_socket(
            netns, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            with contextlib.suppress(PermissionError):  # without CAP_NET_ADMIN it is as large as it is
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.bind((0, 0))
            for group in _GROUPS:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise KernelError(error.errno or 0, str(error.strerror), f"watch {netns or 'this namespace'}") from error

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        self._socket.close()

    def fileno(self) -> int:
        """The file descriptor to wait for."""
        return self._socket.fileno()

    def read(self) -> list[Event]:
        """What happened since the last call, at once; equal ones are told once. Empty: nothing, or only our own."""
        found: dict[Event, None] = {}
        for _ in range(_MOST_AT_ONCE):
            try:
                data, (port, _) = self._socket.recvfrom(_LONGEST_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(error.errno or 0, str(error.strerror), "watch the kernel") from error
                found[Event(Happened.LOST, 0)] = None
                continue
            if port == 0:  # the kernel, and nobody who speaks to us in its place
                found |= dict.fromkeys(parse_events(data, self.ignore))
        return list(found)


def parse_events(data: bytes, ignore: Collection[int]) -> list[Event]:
    """The messages of one datagram that say something, less those of traffic control that these ports asked for."""
    events = []
    for kind, port, body in _messages(data):
        if kind in _TC_TYPES:
            if port not in ignore and len(body) >= _TC_BODY:
                events.append(Event(Happened.TC, TC_MESSAGE.unpack_from(body)[3]))
        elif kind in (_NEW_LINK, _DELETED_LINK) and len(body) >= _LINK_BODY:
            facts = parse_link(body)
            events.append(
                Event(Happened.LINK, facts.index, facts.name, facts.up)
                if kind == _NEW_LINK
                else Event(Happened.GONE, facts.index, facts.name)
            )
    return events


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return
        yield kind, port, data[offset + _HEADER.size : offset + length]
        offset += length + -length % 4
