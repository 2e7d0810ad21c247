# SPDX-License-Identifier: Apache-2.0
"""A bound socket has the room that it was given, says what that is, and asks to be told what its reader reads."""

from __future__ import annotations

import errno
import socket

import pytest
from structlog.testing import capture_logs

from proxy.sockets import binding
from proxy.sockets.binding import SOCKET_BUFFER, bind, cuts_trains
from proxy.sockets.linux import IP_PKTINFO, SO_RCVBUFFORCE


class Limited(socket.socket):
    """As without CAP_NET_ADMIN, under a small net.core.rmem_max, on a kernel that knows nothing new."""

    def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]  # the form that is used
        if (level, option) == (socket.SOL_SOCKET, SO_RCVBUFFORCE):
            raise PermissionError(errno.EPERM, "not permitted")
        if level == socket.IPPROTO_UDP:
            raise OSError(errno.ENOPROTOOPT, "unknown")
        super().setsockopt(level, option, min(value, 100_000) if option == socket.SO_RCVBUF else value)


def test_too_little_room_is_told_once_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Limited)
    binding._warn.cache_clear()
    with capture_logs() as lines:
        for _ in range(3):
            with bind("127.0.0.1", 0) as sock:
                assert not cuts_trains(sock)
    assert [(line["event"], line["given"], line["wanted"]) for line in lines] == [
        ("small_receive_buffer", 100_000, SOCKET_BUFFER)
    ]
    assert "net.core.rmem_max=4194304" in lines[0]["remedy"]


@pytest.mark.parametrize(("host", "told"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
def test_only_a_socket_of_all_addresses_asks_which_was_meant(host: str, told: int) -> None:
    with bind(host, 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, IP_PKTINFO) == told


@pytest.mark.parametrize(("host", "told"), [("::1", 0), ("::", 1)])
def test_only_a_socket_of_all_ipv6_addresses_asks_which_was_meant(host: str, told: int) -> None:
    with bind(host, 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) == told
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_a_shared_port_can_be_bound_again_and_no_other() -> None:
    with bind("127.0.0.1", 0, shared=True) as first:
        port = first.getsockname()[1]
        bind("127.0.0.1", port, shared=True).close()
        with pytest.raises(OSError, match=f"cannot listen on udp 127.0.0.1:{port}"):
            bind("127.0.0.1", port)
