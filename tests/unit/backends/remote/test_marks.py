# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import socket

import pytest
import structlog

from backends.remote.marks import MarkedSocket, mark_socket
from qos.marking import UNMARKED, Mark

EF, LE = Mark(46, 6), Mark(1, 2)


def carried(sock: socket.socket) -> Mark:
    """What the kernel has it carry."""
    return Mark(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) >> 2, sock.getsockopt(socket.SOL_SOCKET, 12))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_takes_a_mark_and_a_changed_one(family):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        marked = MarkedSocket(sock)
        assert not marked.changed
        marked.carry(EF)
        assert (carried(sock), marked.changed) == (EF, True)
        marked.carry(UNMARKED)
        assert (carried(sock), marked.changed) == (UNMARKED, False)


def test_the_same_mark_costs_nothing():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        marked = MarkedSocket(sock, LE)
        marked.carry(LE)
        assert carried(sock) == UNMARKED  # it was said to carry it already
        assert not marked.changed


class Stubborn(socket.socket):
    """A socket whose kernel allows no marks, as a sandbox may have it."""

    def setsockopt(self, *_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_kernel_that_refuses_is_told_in_the_log_and_costs_no_request():
    with Stubborn(socket.AF_INET, socket.SOCK_STREAM) as sock, structlog.testing.capture_logs() as lines:
        mark_socket(sock, EF)
    assert {(line["event"], line["dscp"], line["why"]) for line in lines} == {
        ("mark_refused", 46, "Operation not permitted")
    }
