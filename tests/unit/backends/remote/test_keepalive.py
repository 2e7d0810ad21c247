# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from time import monotonic

import pytest

from backends.remote import address, keepalive
from backends.remote.connection import Connection
from backends.remote.keepalive import Connections
from backends.remote.origin import parse_origin
from inferlane.errors import Reason, Refused
from proxy.certificate import development_certificate
from qos.marking import UNMARKED, Mark
from tests.fakes.raw_server import Peer, RawServer

EF, LE = Mark(46, 6), Mark(1, 2)
SOON = 0.02  # a deadline, or an idle time, that a test waits for


@pytest.fixture
async def connections(server):
    connections = connections_to(server)
    yield connections
    await connections.close()


def connections_to(server: RawServer, *, scheme: str = "http", host: str = "127.0.0.1", **more: object) -> Connections:
    return Connections(parse_origin(f"{scheme}://{host}:{server.port}"), **({"max_idle": 2} | more))


async def opened(connections: Connections, class_name: str = "realtime", mark: Mark = UNMARKED) -> Connection:
    return await connections.open(class_name, mark, deadline=monotonic() + 60)


async def used(
    connections: Connections, server: RawServer, class_name: str = "realtime", mark: Mark = UNMARKED
) -> tuple[Connection, Peer]:
    """A connection after one exchange, which is kept."""
    connection = await opened(connections, class_name, mark)
    peer = await server.accept()
    await ask(connection, peer)
    return connection, peer


async def ask(connection: Connection, peer: Peer) -> None:
    """One exchange."""
    task = asyncio.ensure_future(connection.ask(b"GET / HTTP/1.1\r\n\r\n", deadline=monotonic() + 60))
    await peer.head()
    peer.say(b"HTTP/1.1 204 No Content\r\n\r\n")
    await task


async def test_the_last_one_used_is_taken_first(connections, server):
    first, _ = await used(connections, server)
    second, _ = await used(connections, server)
    assert repr(connections) == f"<Connections 127.0.0.1:{server.port} 2 open, idle: realtime 2>"
    assert connections.take("realtime") is second
    assert connections.take("realtime") is first
    assert connections.take("realtime") is None


async def test_classes_never_share(connections, server):
    realtime, _ = await used(connections, server, "realtime")
    assert connections.take("batch") is None
    assert connections.take("realtime") is realtime


async def test_no_more_are_kept_than_asked_for_and_the_oldest_goes(connections, server):
    exchanges = [await used(connections, server) for _ in range(3)]
    assert await exchanges[0][1].end() == b""
    assert [connection.usable for connection, _ in exchanges] == [False, True, True]


async def test_classes_share_the_room_and_the_one_that_keeps_most_gives_way(connections, server):
    batch = [await used(connections, server, "batch") for _ in range(2)]
    realtime, _ = await used(connections, server, "realtime")
    assert await batch[0][1].end() == b""
    assert "idle: batch 1, realtime 1" in repr(connections)
    assert connections.take("realtime") is realtime


async def test_the_last_one_of_a_class_stays(connections, server):
    names = [f"class-{number}" for number in range(5)]
    kept = {name: (await used(connections, server, name))[0] for name in names}
    assert all(connection.usable for connection in kept.values())
    assert {name: connections.take(name) for name in names} == kept


async def test_what_leaves_the_room_is_not_counted_any_more(connections, server):
    first, peer = await used(connections, server)
    peer.close()  # lost while idle
    while first.usable:
        await asyncio.sleep(0)
    second, peer = await used(connections, server)
    assert connections.take("realtime") is second
    await ask(second, peer)
    third, _ = await used(connections, server)
    assert second.usable and third.usable
    assert "2 open, idle: realtime 2" in repr(connections)


@pytest.fixture
def carried(monkeypatch):
    """The mark that the kernel has each connection carry, by its number."""
    sockets = []

    def open_socket(*arguments: object) -> socket.socket:
        sockets.append(address.open_socket(*arguments))
        return sockets[-1]

    monkeypatch.setattr(keepalive, "open_socket", open_socket)

    def of(number: int) -> Mark:
        sock = sockets[number]
        return Mark(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) >> 2, sock.getsockopt(socket.SOL_SOCKET, 12))

    return of


async def test_a_connection_carries_its_class_s_mark(connections, server, carried):
    await used(connections, server, "realtime", EF)
    await used(connections, server, "background", LE)
    await used(connections, server, "other")
    assert [carried(number) for number in range(3)] == [EF, LE, UNMARKED]


async def test_a_changed_mark_counts_at_once_and_its_connection_is_kept_no_more(connections, server, carried):
    kept, peer = await used(connections, server, "realtime", EF)
    assert connections.take("realtime", LE) is kept
    assert carried(0) == LE
    await ask(kept, peer)
    assert await peer.end() == b""
    assert connections.take("realtime", LE) is None
    await used(connections, server, "realtime", LE)
    assert connections.take("realtime", LE) is not None


async def test_one_that_the_server_closed_is_not_taken(connections, server):
    first, _ = await used(connections, server)
    second, peer = await used(connections, server)
    peer.close()
    while second.usable:
        await asyncio.sleep(0)
    assert connections.take("realtime") is first
    assert connections.take("realtime") is None


async def test_one_idle_for_long_is_left_where_freshness_counts(connections, server):
    connection, _ = await used(connections, server)
    assert connections.take("realtime", used_since=connection.idle_since + 1) is None
    assert connections.take("realtime", used_since=connection.idle_since - 1) is connection


async def test_idle_ones_are_closed(server):
    connections = connections_to(server, idle_s=SOON)
    exchanges = [await used(connections, server, class_name) for class_name in ("realtime", "batch")]
    for connection, peer in exchanges:
        assert await peer.end() == b""
        assert not connection.usable
    await connections.close()


async def test_one_in_use_is_not_idle(server):
    connections = connections_to(server, idle_s=SOON)
    connection, peer = await used(connections, server)
    _, other = await used(connections, server)
    assert connections.take("realtime") is not connection
    assert connections.take("realtime") is connection
    task = asyncio.ensure_future(connection.ask(b"GET / HTTP/1.1\r\n\r\n", deadline=monotonic() + 60))
    await peer.head()
    swept, peer_of_swept = await used(connections, server)
    assert await peer_of_swept.end() == b""
    assert not swept.usable
    peer.say(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (await task).status == 204
    other.close()
    await connections.close()


async def test_closing_takes_along_what_is_in_flight(connections, server):
    connection = await opened(connections)
    peer = await server.accept()
    task = asyncio.ensure_future(connection.ask(b"GET / HTTP/1.1\r\n\r\n", deadline=monotonic() + 60))
    await peer.head()
    await connections.close()
    with pytest.raises(Refused, match="the gateway closed"):
        await task
    assert await peer.end() == b""
    assert "0 open" in repr(connections)


async def test_nothing_is_kept_after_closing(connections, server):
    connection, _ = await used(connections, server)
    await connections.close()
    connections.keep(connection)
    assert connections.take("realtime") is None


async def test_one_opened_while_closing_is_closed(connections, server):
    opening = asyncio.ensure_future(opened(connections))
    await asyncio.sleep(0)
    await connections.close()
    connection = await opening
    assert not connection.usable
    with pytest.raises(Refused):
        await connection.ask(b"", deadline=monotonic() + 60)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_nobody_listens():
    connections = Connections(parse_origin(f"http://127.0.0.1:{free_port()}"), max_idle=1)
    with pytest.raises(Refused, match="Connection refused") as refused:
        await opened(connections)
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 503)


@pytest.fixture
def full_port():
    """A port whose SYNs the kernel drops, because nobody accepts."""
    with socket.socket() as listening, socket.socket() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting.connect(listening.getsockname())
        yield listening.getsockname()[1]


async def test_a_connection_that_does_not_come_in_time(full_port):
    connections = Connections(parse_origin(f"http://127.0.0.1:{full_port}"), max_idle=1)
    with pytest.raises(Refused) as refused:
        await connections.open("realtime", deadline=monotonic() + SOON)
    assert refused.value.reason is Reason.DEADLINE


async def test_a_dead_address_leaves_time_for_the_next(full_port, server, monkeypatch):
    async def look_up(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, ("127.0.0.1", each)) for each in (free_port(), full_port, server.port)]

    monkeypatch.setattr(keepalive, "resolve", look_up)
    monkeypatch.setattr(keepalive, "CONNECT_S", 3 * SOON)  # shared by three addresses
    connections = connections_to(server)
    assert (await opened(connections)).usable
    await connections.close()


@pytest.fixture
async def secure(tmp_path):
    """A TLS server, and a context that believes it."""
    certificate, key = development_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = RawServer()
    await server.start(context)
    yield server, ssl.create_default_context(cafile=certificate)
    await server.close()


async def test_https(secure):
    server, context = secure
    connections = connections_to(server, scheme="https", host="localhost")
    connections.tls = context
    connection, _ = await used(connections, server)
    assert connections.take("realtime") is connection
    await connections.close()


async def test_a_resolved_address_is_connected_to_and_the_name_is_still_the_servers(secure):
    server, context = secure
    origin = parse_origin(f"https://localhost:{server.port}", address="127.0.0.1")
    never = parse_origin(f"https://other.example:{server.port}", address="127.0.0.1")
    for asked, well in ((origin, True), (never, False)):
        connections = Connections(asked, max_idle=1)
        connections.tls = context
        if well:
            assert (await opened(connections)).usable
        else:
            with pytest.raises(Refused, match=r"not valid for 'other\.example'"):
                await opened(connections)
        await connections.close()


async def test_a_certificate_of_nobody_we_believe(secure):
    server, _ = secure
    connections = connections_to(server, scheme="https")
    connections.tls = ssl.create_default_context()
    with pytest.raises(Refused, match=r"certificate is not accepted .* tls\.ca") as refused:
        await opened(connections)
    assert refused.value.status == 503
    await connections.close()


async def test_a_server_that_speaks_no_tls(server):
    connections = connections_to(server, scheme="https")
    connections.tls = ssl.create_default_context()
    opening = asyncio.ensure_future(opened(connections))
    (await server.accept()).say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(Refused, match="TLS handshake failed"):
        await opening
    await connections.close()


async def test_without_descriptors_a_request_is_refused_at_once_and_the_next_finds_them_again(connections, server):
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, usual[1]))  # what is open stays; nothing new gets a number below 1
    try:
        with pytest.raises(Refused, match="no descriptors") as refused:
            await opened(connections)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert refused.value.status == 503
    connection, _ = await used(connections, server)
    assert connections.take("realtime") is connection
