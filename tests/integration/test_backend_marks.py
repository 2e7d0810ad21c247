# SPDX-License-Identifier: Apache-2.0
"""What the gateway's packets to its backends look like on the wire: one mark a class, from the first packet on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import uvloop

from backends.remote.datagram import DatagramBackend
from backends.remote.oip import ONE_WRITE, OipBackend
from inferlane.wire import Header, Type, decode, encode
from proxy.certificate import development_certificate
from qos.settings import BUILT_IN_CLASSES, class_table
from qos.traffic_class import TrafficClass
from tests.fakes.asking import request_of
from tests.fakes.capture import Packet, capturing
from tests.fakes.raw_udp import COOKIE

pytestmark = pytest.mark.needs_root

REALTIME, INTERACTIVE, BATCH, BACKGROUND = CLASSES = tuple(class_table(BUILT_IN_CLASSES))
FIELDS = {"realtime": 0xB8, "interactive": 0x48, "batch": 0x28, "background": 0x04}
"""DSCP and ECN, as the header has them: the ECN bits are 0, for nobody marked them."""
HOSTS = {"IPv4": ("127.0.0.1", "127.0.0.1", 4), "IPv6": ("::1", "[::1]", 6)}
MAPPED = ("127.0.0.1", "[::ffff:127.0.0.1]", 4)
"""Where a server listens, how the config names it, and what travels."""

by_host = pytest.mark.parametrize(("bound", "named", "version"), [*HOSTS.values(), MAPPED], ids=[*HOSTS, "IPv4-mapped"])


@asynccontextmanager
async def http_server(host: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that answers everything with five bytes; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0)


def a_request(traffic_class: TrafficClass, body: bytes = b"{}"):
    return request_of(body, traffic_class=traffic_class, json_length=2)


def by_connection(packets: list[Packet]) -> dict[int, set[int]]:
    """The DS fields of each client port."""
    fields: dict[int, set[int]] = {}
    for each in packets:
        fields.setdefault(each.source, set()).add(each.ds_field)
    return fields


@pytest.mark.parametrize("size", [10, 2 * ONE_WRITE], ids=["at once", "while it arrives"])
@by_host
async def test_http_carries_the_class_s_mark_from_the_first_packet(bound, named, version, size):
    async with http_server(bound) as port:
        packets = await exchanges(OipBackend(f"http://{named}:{port}", slots=4), port, bytes(size))
    assert {each.version for each in packets} == {version}
    one_connection_a_class(packets)


@pytest.mark.parametrize(("bound", "named", "version"), HOSTS.values(), ids=HOSTS)
async def test_https_does_too(bound, named, version, tmp_path):
    certificate, key = development_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with http_server(bound, context) as port:
        packets = await exchanges(OipBackend(f"https://{named}:{port}", slots=4, ca=certificate), port)
    assert {each.version for each in packets} == {version}
    one_connection_a_class(packets)


async def exchanges(backend: OipBackend, port: int, tensors: bytes = b"") -> list[Packet]:
    """The packets of two exchanges of every class, in turns."""
    with capturing() as wire:
        await backend.start()
        for _ in range(2):
            for traffic_class in CLASSES:
                assert (await backend.infer(a_request(traffic_class, b"{}" + tensors))).body == b"{}"
        packets = wire.packets(to=port)
        await backend.close()
    return packets


def one_connection_a_class(packets: list[Packet]) -> None:
    """Each used twice, and with one mark, its SYN's."""
    opening = [each.ds_field for each in packets if each.opens]
    assert opening == list(FIELDS.values())
    assert sorted(map(sorted, by_connection(packets).values())) == sorted([field] for field in opening)


async def test_a_changed_mark_counts_for_the_next_request():
    await changing()


def test_also_on_the_gateway_s_own_event_loop():
    uvloop.run(changing())


async def changing() -> None:
    changed = replace(REALTIME, dscp=34)
    async with http_server("127.0.0.1") as port:
        with capturing() as wire:
            backend = OipBackend(f"http://127.0.0.1:{port}", slots=4)
            await backend.infer(a_request(REALTIME))
            assert wire.ds_fields(to=port) == {0xB8}
            wire.forget()
            await backend.infer(a_request(changed))
            kept = wire.packets(to=port)
            wire.forget()
            await backend.infer(a_request(changed))
            reopened = wire.packets(to=port)
            await backend.close()
    # At once, on the connection that is there; then on one whose SYN has it, for those who answer with the SYN's.
    assert {each.ds_field for each in kept if each.payload} == {34 << 2}
    assert not any(each.opens for each in kept)
    assert {each.ds_field for each in reopened if each.payload or each.opens} == {34 << 2}
    assert sum(each.opens for each in reopened) == 1


@asynccontextmanager
async def datagram_server(host: str) -> AsyncIterator[DatagramServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(DatagramServer, local_addr=(host, 0))
    try:
        yield server
    finally:
        transport.abort()
        await asyncio.sleep(0)


class DatagramServer(asyncio.DatagramProtocol):
    """Answers every request; deaf to the first `deaf` datagrams that show a cookie."""

    def __init__(self) -> None:
        self.deaf = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: object) -> None:
        header, _ = decode(data)
        answer = Header(type=Type.REPLY, request_id=header.request_id, status=200, total_length=5)
        if header.type is not Type.REQUEST:
            return
        if header.cookie != COOKIE:
            answer = Header(type=Type.CHALLENGE, request_id=header.request_id, cookie=COOKIE)
            self._transport.sendto(encode(answer), addr)
        elif self.deaf:
            self.deaf -= 1
        else:
            self._transport.sendto(encode(answer) + b"hello", addr)


@by_host
async def test_datagrams_carry_the_class_s_mark_the_repeated_ones_too(bound, named, version):
    async with datagram_server(bound) as server:
        with capturing() as wire:
            backend = DatagramBackend(f"{named}:{server.port}")
            for traffic_class in CLASSES:
                server.deaf = 1
                await backend.infer(a_request(traffic_class))
                # unproved, proved, and repeated because nobody answered
                assert len([each for each in wire.packets(to=server.port) if each.payload]) >= 3
                assert wire.ds_fields(to=server.port) == {FIELDS[traffic_class.name]}
                assert {each.version for each in wire.packets(to=server.port)} == {version}
                wire.forget()
            await backend.close()


async def test_a_changed_mark_counts_for_the_next_datagram():
    async with datagram_server("127.0.0.1") as server:
        with capturing() as wire:
            backend = DatagramBackend(f"127.0.0.1:{server.port}")
            await backend.infer(a_request(REALTIME))
            first = wire.packets(to=server.port)
            wire.forget()
            await backend.infer(a_request(replace(REALTIME, dscp=34)))
            second = wire.packets(to=server.port)
            await backend.close()
    assert {each.ds_field for each in first} == {0xB8}
    assert {each.ds_field for each in second} == {34 << 2}
    assert {each.source for each in first} == {each.source for each in second}


async def test_what_belongs_to_no_class_travels_unmarked():
    async with http_server("127.0.0.1") as port:
        with capturing() as wire:
            backend = OipBackend(f"http://127.0.0.1:{port}", slots=4)
            asking = asyncio.ensure_future(backend.metadata("m", "", deadline=asyncio.get_running_loop().time() + 60))
            async with asyncio.timeout(30):
                while not any(each.payload for each in wire.packets(to=port)):
                    await asyncio.sleep(0.01)
            assert wire.ds_fields(to=port) == {0}
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await backend.close()
