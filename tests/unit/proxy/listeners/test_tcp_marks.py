# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from proxy.listeners.tcp_marks import arrived_ds_field, carry, listen_for_marks, reflected
from qos.marking import Mark, socket_options
from tests.fakes.http1_site import INFER, Site
from tests.fakes.walk import echo

EF, LE = 46 << 2, 1 << 2


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def ends(request) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A marked client and its accepted connection."""
    family, host = request.param
    with socket.socket(family) as listening, socket.socket(family) as client:
        listen_for_marks(listening)
        listening.bind((host, 0))
        listening.listen()
        for option in socket_options(family, Mark(46, 6)):
            client.setsockopt(*option)
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            yield client, accepted


def test_the_mark_a_connection_came_with(ends):
    _, accepted = ends
    assert arrived_ds_field(accepted) == EF


def test_a_mark_that_changed_is_seen_where_the_kernel_tells(ends):
    client, accepted = ends
    for option in socket_options(client.family, Mark(1, 2)):
        client.setsockopt(*option)
    client.sendall(b"x")
    accepted.recv(1)
    assert arrived_ds_field(accepted) == (LE if client.family == socket.AF_INET6 else EF)


def test_replies_carry_it(ends):
    _, accepted = ends
    carry(accepted, reflected(EF | 1))
    level, name = (
        (socket.IPPROTO_IP, socket.IP_TOS)
        if accepted.family == socket.AF_INET
        else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    )
    assert accepted.getsockopt(level, name) == EF
    assert accepted.getsockopt(socket.SOL_SOCKET, 12) == 6


def test_a_field_that_the_kernel_reflected_lacks_the_priority(ends):
    _, accepted = ends
    carry(accepted, reflected(EF))
    accepted.setsockopt(socket.SOL_SOCKET, 12, 0)
    carry(accepted, reflected(EF))
    assert accepted.getsockopt(socket.SOL_SOCKET, 12) == 6


def test_a_connection_that_is_gone_came_unmarked(ends):
    _, accepted = ends
    accepted.close()
    assert arrived_ds_field(accepted) == 0
    carry(accepted, reflected(EF))


def test_a_unix_socket_has_no_mark(tmp_path):
    one, other = socket.socketpair()
    with one, other:
        listen_for_marks(one)
        carry(one, reflected(EF))
        assert arrived_ds_field(one) == 0


async def test_the_http_door_tells_a_request_s_mark():
    site = Site(echo)
    await site.start()
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, EF)
        await loop.sock_connect(client, ("127.0.0.1", site.port))
        await loop.sock_sendall(client, b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}" % INFER.encode())
        head = await loop.sock_recv(client, 4096)
    await site.close()
    assert b"inferlane-dscp: 46" in head
    assert site.walk.arrivals[0].dscp == 46
