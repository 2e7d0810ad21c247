# SPDX-License-Identifier: Apache-2.0
"""Stream sockets, and what is said when an address cannot be had."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from proxy.bind import bind_tcp, bind_unix


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_free_port(host):
    with bind_tcp(host, 0) as sock:
        assert sock.getsockname()[0] == host
        assert sock.getsockname()[1] > 0
        assert not sock.getblocking()


def test_a_taken_port_is_named():
    with bind_tcp("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on tcp 127.0.0.1:{port}: Address already in use"):
            bind_tcp("127.0.0.1", port)


def test_of_two_that_want_to_listen_at_once_one_is_told_before_it_serves():
    with bind_tcp("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind_tcp("127.0.0.1", port, listening=True):
            with pytest.raises(OSError, match=f"cannot listen on tcp 127.0.0.1:{port}: Address already in use"):
                bind_tcp("127.0.0.1", port, listening=True)
            with pytest.raises(OSError, match="Address already in use"):
                first.listen()


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(OSError, match=r"cannot listen on tcp 192\.0\.2\.1:0: "):
        bind_tcp("192.0.2.1", 0)


def test_an_ipv6_address_leaves_the_ipv4_port_free():
    with bind_tcp("::1", 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_a_unix_socket(tmp_path: Path):
    with bind_unix(tmp_path / "door") as sock:
        assert stat.S_ISSOCK((tmp_path / "door").stat().st_mode)
        assert not sock.getblocking()


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path):
    bind_unix(tmp_path / "door").close()
    with bind_unix(tmp_path / "door") as sock, socket.socket(socket.AF_UNIX) as client:
        sock.listen()
        client.connect(str(tmp_path / "door"))


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path):
    with bind_unix(tmp_path / "door") as first:
        first.listen()
        with pytest.raises(OSError, match="door: another process listens there"):
            bind_unix(tmp_path / "door")
    assert (tmp_path / "door").exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path):
    (tmp_path / "door").write_text("precious")
    with pytest.raises(FileExistsError, match="a file that is no socket lies there"):
        bind_unix(tmp_path / "door")
    assert (tmp_path / "door").read_text() == "precious"


@pytest.mark.parametrize("path", ["missing/door", "d" * 200])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, path: str):
    with pytest.raises(OSError, match=f"cannot listen on unix .*{path}: "):
        bind_unix(tmp_path / path)
