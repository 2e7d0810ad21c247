# SPDX-License-Identifier: Apache-2.0
"""A door on loopback: one port for QUIC and datagrams, silence for strangers, and a way to close."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from structlog.testing import capture_logs

from inferlane.wire import Header, Type, decode, encode, fragments
from proxy.bind import bind_tcp
from proxy.certificate import development_certificate
from proxy.keys import Keys
from proxy.listeners.alarms import Alarms
from proxy.listeners.door import Door, DoorPlan, alpn_of
from proxy.listeners.tcp import tls_context
from proxy.listeners.udp import bind as udp_bind
from proxy.quic.configuration import server_configuration
from proxy.quic.connection_ids import ConnectionIds
from qos.marking import received_ds_field
from tests.fakes.walk import MARKS, FakeWalk, echo, never

ALL = frozenset({"h3", "stream", "datagram", "udp"})
OpenDoor = Callable[..., Door]


@pytest.fixture
async def open_door(tmp_path: Path) -> AsyncIterator[OpenDoor]:
    """Doors on free ports, closed afterwards."""
    alarms = Alarms(time.monotonic)
    doors = []

    def make(
        walk: FakeWalk,
        accept: frozenset[str] = ALL,
        host: str = "127.0.0.1",
        *,
        reflects: bool = False,
        port: int = 0,
        keys: Keys | None = None,
        ids: ConnectionIds | None = None,
    ) -> Door:
        certificate, key = development_certificate(tmp_path)
        alpn = alpn_of(accept)
        plan = DoorPlan(
            name="main",
            addresses=[(host, port)],
            accept=accept,
            tls=server_configuration(certificate, key, alpn) if alpn else None,
            http1_tls=tls_context(certificate, key) if "h1" in accept else None,
            max_body=1 << 20,
            cookie_secret=bytes(32),
            reflects=reflects,
            keys=keys,
            ids=ids,
        )
        door = Door(plan, walk, marks=MARKS, alarms=alarms, clock=time.monotonic)
        door.start()
        doors.append(door)
        return door

    yield make
    for door in doors:
        door.close()
        await door.wait_closed()
    alarms.close()


class SilentClient(QuicConnectionProtocol):
    """aioquic's client without its stream readers, which warn when nobody closes them."""

    def quic_event_received(self, event: QuicEvent) -> None: ...


@asynccontextmanager
async def quic_client(door: Door, alpn: str = "h3") -> AsyncIterator[QuicConnectionProtocol]:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name="localhost")
    configuration.verify_mode = ssl.CERT_NONE
    async with connect(*door.bound[0], configuration=configuration, create_protocol=SilentClient) as protocol:
        yield protocol


async def eventually(happened: Callable[[], object]) -> None:
    """Poll, with a generous bound, for what a socket will bring."""
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.002)


def ask(protocol: QuicConnectionProtocol, http: H3Connection) -> None:
    stream_id = protocol._quic.get_next_available_stream_id()
    path = (b":path", b"/v2/models/m/infer")
    http.send_headers(
        stream_id, [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), path], end_stream=True
    )
    protocol.transmit()


async def udp_exchange(door: Door, datagrams: list[bytes], *, family: int = socket.AF_INET) -> list[bytes]:
    """Send from one socket, and collect what comes back until nothing has come for a while."""
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(door.bound[0])
        before = door.datagrams_received
        for each in datagrams:
            await loop.sock_sendall(sock, each)
        await eventually(lambda: door.datagrams_received >= before + len(datagrams))
        answers: list[bytes] = []
        for _ in range(5):
            await asyncio.sleep(0)
            try:
                while True:
                    answers.append(sock.recv(2048))
            except BlockingIOError:
                continue
        return answers


async def test_http3_and_datagrams_share_the_port(open_door: OpenDoor) -> None:
    walk = FakeWalk(echo)
    door = open_door(walk)
    async with quic_client(door) as protocol:
        ask(protocol, H3Connection(protocol._quic))
        await eventually(lambda: len(walk.arrivals) == 1)
        assert (door.connections, door.handshakes) == (1, 1)
        (challenge,) = await udp_exchange(
            door, [fragments(Header(type=Type.REQUEST, request_id=1, model="m"), bytes(60))[0]]
        )
        assert decode(challenge)[0].type is Type.CHALLENGE
    await eventually(lambda: door.connections == 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_datagram_with_its_cookie_is_answered(open_door: OpenDoor, host: str) -> None:
    walk = FakeWalk(echo)
    door = open_door(walk, frozenset({"udp"}), host)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(door.bound[0])
        request = Header(type=Type.REQUEST, request_id=5, model="m", cookie=bytes(16))
        await loop.sock_sendall(sock, fragments(request, b"{}")[0])
        header, _ = decode(await asyncio.wait_for(loop.sock_recv(sock, 2048), 20))
        assert header.type is Type.CHALLENGE
        proved = Header(type=Type.REQUEST, request_id=5, model="m", cookie=header.cookie)
        await loop.sock_sendall(sock, fragments(proved, b"{}")[0])
        reply = await asyncio.wait_for(loop.sock_recv(sock, 2048), 20)
    header, length = decode(reply)
    assert (header.type, header.status, reply[length:]) == (Type.REPLY, 200, b"{}")
    assert walk.arrivals[0].client == host


async def test_random_bytes_get_silence_and_a_count(open_door: OpenDoor) -> None:
    walk = FakeWalk(echo)
    door = open_door(walk)
    rng = random.Random(4433)
    noise = [rng.randbytes(rng.randrange(0, 1500)) for _ in range(200)]
    noise = [each for each in noise if not (each[:1] and each[0] & 0xC0 == 0xC0 and len(each) >= 1200)]
    answers = await udp_exchange(door, noise)
    assert answers == []
    assert sum(door.datagrams_dropped.values()) == len(noise)
    assert not walk.arrivals
    assert door.connections == 0


async def test_an_unknown_version_gets_one_negotiation_no_longer_than_itself(open_door: OpenDoor) -> None:
    door = open_door(FakeWalk(echo))
    first = b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(8)
    (answer,) = await udp_exchange(door, [first.ljust(1200, b"\0")])
    assert answer[1:5] == bytes(4)
    assert len(answer) <= 1200
    assert await udp_exchange(door, [first.ljust(1199, b"\0")]) == []
    assert door.datagrams_dropped["version_negotiations"] == 1


async def test_a_listener_without_udp_counts_its_datagrams_and_one_without_tls_its_quic(open_door: OpenDoor) -> None:
    quic_only = open_door(FakeWalk(echo), frozenset({"h3"}))
    udp_only = open_door(FakeWalk(echo), frozenset({"udp"}))
    ping = encode(Header(type=Type.PING, request_id=1, cookie=bytes(16)))
    assert await udp_exchange(quic_only, [ping]) == []
    assert await udp_exchange(udp_only, [b"\xc0" + bytes(1300)]) == []
    assert quic_only.datagrams_dropped["no_protocol"] == udp_only.datagrams_dropped["no_protocol"] == 1


async def test_an_alpn_that_is_not_accepted_is_refused_in_the_handshake(open_door: OpenDoor) -> None:
    door = open_door(FakeWalk(echo), frozenset({"h3"}))
    with pytest.raises(ConnectionError):
        async with quic_client(door, "inferlane/1"):
            pass


async def test_a_connection_that_closes_cancels_its_walks(open_door: OpenDoor) -> None:
    walk = FakeWalk(never)
    door = open_door(walk)
    async with quic_client(door) as protocol:
        ask(protocol, H3Connection(protocol._quic))
        await eventually(lambda: len(walk.arrivals) == 1)
        assert not door.idle
    await eventually(lambda: walk.cancelled == 1)
    assert door.idle


async def test_draining_refuses_new_connections_and_keeps_the_old(open_door: OpenDoor) -> None:
    walk = FakeWalk(echo)
    door = open_door(walk)
    async with quic_client(door) as protocol:
        http = H3Connection(protocol._quic)
        protocol.transmit()
        await protocol.ping()
        door.drain()
        initial = b"\xc0\x00\x00\x00\x01\x08" + bytes(8) + b"\x08" + bytes(8) + b"\x00\x44\x00"
        await udp_exchange(door, [initial.ljust(1200, b"\0")])
        assert door.connections == 1
        assert door.datagrams_dropped["draining"] == 1
        ask(protocol, http)
        await eventually(lambda: len(walk.arrivals) == 1)


async def test_one_connection_that_makes_our_code_raise_takes_no_other_along(open_door: OpenDoor) -> None:
    walk = FakeWalk(echo)
    door = open_door(walk)
    async with quic_client(door) as good:
        http = H3Connection(good._quic)
        async with quic_client(door) as bad:
            peers = list(door._sides[0].quic._peers)  # type: ignore[union-attr]
            victim = next(each for each in peers if each.address[1] == bad._transport.get_extra_info("sockname")[1])  # type: ignore[union-attr]
            victim.quic.receive_datagram = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
            bad._quic.send_ping(1)
            bad.transmit()
            with capture_logs() as logged:
                await eventually(lambda: door.datagrams_dropped["failed"] >= 1)
        ask(good, http)
        await eventually(lambda: len(walk.arrivals) == 1)
    assert logged[0]["event"] == "connection_failed"


async def test_binding_is_all_or_nothing(open_door: OpenDoor) -> None:
    taken = open_door(FakeWalk(echo), frozenset({"udp"})).bound[0]
    plan = DoorPlan(
        name="second",
        addresses=[("127.0.0.1", 0), taken],
        accept=frozenset({"udp"}),
        tls=None,
        max_body=1,
        cookie_secret=bytes(32),
    )
    door = Door(plan, FakeWalk(echo), marks=MARKS, alarms=Alarms(time.monotonic), clock=time.monotonic)
    with pytest.raises(OSError, match=str(taken[1])):
        door.start()
    assert door.bound == []


@pytest.mark.parametrize(("reflects", "expected"), [(False, {18 << 2}), (True, {46 << 2})])
async def test_datagrams_go_back_under_their_class_s_mark_or_the_one_that_came(
    open_door: OpenDoor, reflects: bool, expected: set[int]
) -> None:
    door = open_door(FakeWalk(echo), frozenset({"udp"}), reflects=reflects)
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2 | 1)  # ECN is the client's own business
        sock.connect(door.bound[0])
        first = fragments(Header(type=Type.REQUEST, request_id=5, model="m", cookie=bytes(16)), b"{}")[0]
        sock.send(first)
        data, parts, _, _ = await asyncio.to_thread(sock.recvmsg, 2048, 100)
        found.add(received_ds_field(parts))
        proved = Header(type=Type.REQUEST, request_id=5, model="m", cookie=decode(data)[0].cookie)
        sock.send(fragments(proved, b"{}")[0])
        _, parts, _, _ = await asyncio.to_thread(sock.recvmsg, 2048, 100)
        found.add(received_ds_field(parts))
    assert found == expected


async def https(door: Door, tmp_path: Path, request: bytes = b"GET /v2 HTTP/1.1\r\nHost: h\r\n") -> bytes:
    """Ask once, on a connection of its own."""
    client = ssl.create_default_context(cafile=tmp_path / "development.pem")
    reader, writer = await asyncio.open_connection(*door.bound[0], ssl=client)
    writer.write(request + b"Connection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_http_1_1_has_the_same_port_on_tcp(open_door: OpenDoor, tmp_path: Path, host: str) -> None:
    walk = FakeWalk(echo)
    door = open_door(walk, ALL | {"h1"}, host)
    async with quic_client(door) as protocol:
        ask(protocol, H3Connection(protocol._quic))
        await eventually(lambda: len(walk.arrivals) == 1)
    answer = await https(door, tmp_path)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'h3=":%d"; ma=86400' % door.bound[0][1] in answer
    assert [(each.transport, each.listener) for each in walk.arrivals] == [("h3", "main"), ("h1", "main")]
    assert door.http1 is not None and door.http1.handshakes == 1


async def test_http_1_1_alone_leaves_udp_to_others(open_door: OpenDoor, tmp_path: Path) -> None:
    door = open_door(FakeWalk(echo), frozenset({"h1"}))
    assert b"alt-svc" not in (await https(door, tmp_path)).lower()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(door.bound[0])
    assert (door.connections, door.handshakes, door.datagrams_received) == (0, 0, 0)


async def test_without_it_there_is_nothing_on_tcp(open_door: OpenDoor) -> None:
    door = open_door(FakeWalk(echo))
    assert door.http1 is None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*door.bound[0])


async def test_a_port_that_tcp_cannot_have_is_another_one_s(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel chooses for UDP alone."""
    with bind_tcp("127.0.0.1", 0, listening=True) as taken:
        number, tries = taken.getsockname()[1], []

        def bind(host: str, port: int, *, shared: bool) -> socket.socket:
            tries.append(port)
            return udp_bind(host, number if len(tries) < 3 else port, shared=shared)

        monkeypatch.setattr("proxy.listeners.bound.bind", bind)
        door = open_door(FakeWalk(echo), ALL | {"h1"})
    assert tries == [0, 0, 0]
    assert door.bound[0][1] != number


async def test_one_socket_tells_nobody_how_to_end_a_connection_of_another(open_door: OpenDoor, tmp_path: Path) -> None:
    """RFC 9000 section 21.11: whoever has seen an id on the wire may ask every socket of ours about it."""
    keys = Keys.fresh()
    ids = ConnectionIds(key=keys.steering)
    here, there = (open_door(FakeWalk(echo), keys=keys, ids=ids) for _ in range(2))
    async with quic_client(here) as protocol:
        peer = protocol._quic._peer_cid
        answers = await udp_exchange(there, [b"\x41" + peer.cid + bytes(60)])
    assert [each for each in answers if each.endswith(peer.stateless_reset_token)] == []
    assert there.datagrams_dropped["stateless_resets"] == 1


async def test_a_port_that_was_asked_for_is_not_another_one_s(open_door: OpenDoor) -> None:
    with bind_tcp("127.0.0.1", 0, listening=True) as taken:
        number = taken.getsockname()[1]
        for accept in (frozenset({"h1"}), ALL | {"h1"}):
            with pytest.raises(OSError, match=f"cannot listen on tcp 127.0.0.1:{number}"):
                open_door(FakeWalk(echo), accept, port=number)
        with udp_bind("127.0.0.1", number):  # given back
            pass


async def test_draining_ends_idle_tcp_connections_and_waits_for_busy_ones(open_door: OpenDoor, tmp_path: Path) -> None:
    walk = FakeWalk(never)
    door = open_door(walk, ALL | {"h1"})
    asking = asyncio.create_task(https(door, tmp_path))
    await eventually(lambda: walk.arrivals)
    door.drain()
    assert not door.idle
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*door.bound[0])
    door.close()
    await door.wait_closed()
    assert walk.cancelled == 1
    assert door.idle and door.bound == []
    with suppress(ConnectionResetError):
        assert await asking == b""
