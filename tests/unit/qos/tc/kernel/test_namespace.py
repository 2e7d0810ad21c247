# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel.namespace import open_socket


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
