# SPDX-License-Identifier: Apache-2.0
"""Sockets to backends carry the mark of one traffic class, from their first packet on and after every change of it."""

from __future__ import annotations

import socket

import structlog

from qos.marking import UNMARKED, Mark, socket_options

__all__ = ["MarkedSocket", "mark_socket"]

_log = structlog.get_logger("inferlane.backends")


def mark_socket(sock: socket.socket, mark: Mark) -> None:
    """Mark what this socket sends from now on, what it repeats included.

    Where the kernel refuses, requests travel without it and the log says so: a mark is a wish, not a condition.
    """
    for level, name, value in socket_options(sock.family, mark):
        try:
            sock.setsockopt(level, name, value)
        except OSError as error:
            _log.warning("mark_refused", dscp=mark.dscp, option=name, value=value, why=error.strerror or str(error))


class MarkedSocket:
    """An open socket and its mark. mark: what it was opened with."""

    __slots__ = ("_first", "mark", "sock")

    def __init__(self, sock: socket.socket, mark: Mark = UNMARKED) -> None:
        self.sock = sock
        self.mark = mark
        self._first = mark

    @property
    def changed(self) -> bool:
        """Whether its first packet, whose mark a peer may answer with, had another one."""
        return self.mark != self._first

    def carry(self, mark: Mark) -> None:
        """What it sends next has this mark: nothing to do unless the class's was changed meanwhile."""
        if mark != self.mark:
            mark_socket(self.sock, mark)
            self.mark = mark
