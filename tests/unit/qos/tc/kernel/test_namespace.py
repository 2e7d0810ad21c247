# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel.namespace import inside, open_socket


def test_without_a_name_the_socket_is_in_the_namespace_that_we_are_in():
    with open_socket(None, socket.AF_INET, socket.SOCK_DGRAM) as opened:
        assert opened.family == socket.AF_INET
        assert opened.type & socket.SOCK_DGRAM


@pytest.mark.parametrize("name", ["no-such-namespace-here", "../netns", ".", "..", "", "a/b"])
def test_a_namespace_that_is_not_there_is_an_error_and_is_not_made(name):
    with pytest.raises(KernelError, match="there is none of this name; `ip netns list` prints them") as caught:
        open_socket(name, socket.AF_INET, socket.SOCK_DGRAM)
    assert caught.value.errno == errno.ENOENT
    assert repr(name) in str(caught.value)
    assert not Path("/run/netns/no-such-namespace-here").exists()


def test_without_a_name_what_is_to_be_done_is_done_here():
    assert inside(None, os.getpid) == os.getpid()


def test_a_socket_that_cannot_be_had_is_an_error_that_says_where():
    with pytest.raises(KernelError, match="open a socket in this namespace") as caught:
        open_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, 31)
    assert caught.value.errno == errno.EPROTONOSUPPORT
