# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator

import pytest

from proxy.listeners.stream_connection import StreamConnection
from tests.fakes.http1_site import until
from tests.fakes.walk import REALTIME, policing


class Parser(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")


class Owner:
    """Has them."""

    def __init__(self) -> None:
        self.open: list[StreamConnection] = []

    def opened(self, connection: StreamConnection) -> None:
        self.open.append(connection)

    def lost(self, connection: StreamConnection) -> None:
        self.open.remove(connection)


class End:
    """One end of a connection on the loop, and the other in the test's hand."""

    def __init__(self) -> None:
        self.now = 7.0
        self.owner, self.parser = Owner(), Parser()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.client = socket.create_connection(listening.getsockname())
            self.sock, _ = listening.accept()
        for each in (self.client, self.sock):
            each.setblocking(False)

    async def open(self, **options: object) -> StreamConnection:
        made = StreamConnection(self.sock, self.parser, self.owner, clock=lambda: self.now, **options)  # type: ignore[arg-type]
        await asyncio.get_running_loop().connect_accepted_socket(lambda: made, self.sock)
        return made

    async def read_all(self) -> bytes:
        """Whatever came until the connection ended."""
        loop, found = asyncio.get_running_loop(), b""
        while data := await loop.sock_recv(self.client, 1 << 16):
            found += data
        return found


@pytest.fixture
def end() -> Iterator[End]:
    made = End()
    yield made
    for each in (made.client, made.sock):
        each.close()


async def test_everything_is_passed_on(end):
    connection = await end.open()
    assert (end.owner.open, repr(connection)) == ([connection], "<StreamConnection idle>")
    end.client.sendall(b"hello")
    end.client.close()
    await until(lambda: not end.owner.open)
    connection.pause_writing()
    connection.resume_writing()
    assert end.parser.told == ["made", b"hello", "eof", "lost", "pause", "resume"]
    assert repr(connection) == "<StreamConnection gone>"


async def test_it_knows_since_when_a_head_is_unfinished(end):
    connection = await end.open()
    assert connection.head_since is None
    connection.data_received(b"GET")
    end.now = 9.0
    connection.data_received(b" /")
    assert connection.head_since == 7.0
    connection.begin()
    connection.data_received(b"a body's bytes")
    assert (connection.head_since, connection.busy) == (None, True)
    connection.end()
    assert (connection.head_since, connection.busy) == (None, False)
    connection.data_received(b"GET")
    assert connection.head_since == 9.0
    connection.cut()
    await until(lambda: not end.owner.open)


async def test_it_carries_marks_and_tells_round_trips_only_where_it_is_given_the_classes(end):
    connection = await end.open(marks=policing())
    connection.carry(REALTIME)
    assert end.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == REALTIME.dscp << 2
    assert connection.rtt_s is not None
    connection.cut()
    await until(lambda: not end.owner.open)


async def test_without_them_it_leaves_the_mark_alone(end):
    connection = await end.open()
    connection.carry(REALTIME)
    assert end.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0
    assert connection.rtt_s is None
    connection.cut()
    await until(lambda: not end.owner.open)


async def test_it_knows_its_port_and_that_its_client_left(end):
    connection = await end.open()
    assert connection.port == end.client.getpeername()[1]
    assert not connection.has_left
    connection.cut()
    assert connection.has_left
    await until(lambda: not end.owner.open)


async def test_hanging_up_lets_what_is_written_leave(end):
    connection = await end.open()
    connection._transport.write(bytes(1 << 20))
    connection.hang_up()
    assert len(await end.read_all()) == 1 << 20


async def test_breaking_off_is_a_reset(end):
    connection = await end.open()
    connection._transport.write(b"half")
    connection.break_off(after_s=0)
    await until(lambda: not end.owner.open)
    with pytest.raises(ConnectionResetError):
        await end.read_all()


async def test_breaking_off_later_lets_the_last_words_leave(end):
    connection = await end.open()
    connection._transport.write(b"half")
    connection.break_off(after_s=30.0)
    assert await end.read_all() == b"half"


async def test_breaking_off_later_does_not_wait_for_ever(end):
    end.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection = await end.open()
    connection._transport.write(bytes(32 << 20))
    connection.break_off(after_s=0.01)
    await until(lambda: not end.owner.open)


async def test_one_that_is_gone_can_be_hung_up_on_in_every_way(end):
    connection = await end.open()
    end.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    end.client.close()
    await until(lambda: not end.owner.open)
    connection.hang_up()
    connection.cut()
    connection.break_off(after_s=0)
    connection.carry(REALTIME)
    assert connection.has_left
