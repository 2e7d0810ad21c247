# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket

import pytest
from aioquic.quic.events import PingAcknowledged

from inferlane.errors import ConnectionFailed
from inferlane.transports.link import QuicLink
from inferlane.transports.quic import ALPN_H3, ALPN_NATIVE, Trust, client_configuration
from inferlane.transports.sockets import resolve
from tests.fakes.quic_gateway import quic_gateway


@pytest.fixture
async def link_to(target_of, trust):
    """Makes links to a port of this machine, and closes them."""
    links = []

    async def make(port, *, alpn=ALPN_NATIVE, trust=trust, dscp=0, host="127.0.0.1"):
        (address,) = await resolve(host, port)
        configuration = client_configuration(target_of(port, host=f"[{host}]" if ":" in host else host), trust, alpn)
        links.append(QuicLink(address, configuration, dscp=dscp, on_event=lambda event: None))
        return links[-1]

    yield make
    for link in links:
        link.close(0, "the test is over")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_very_first_packet_is_marked(link_to, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.bind((host, 0))
        sock.settimeout(10)
        link = await link_to(sock.getsockname()[1], dscp=18, host=host)
        connecting = asyncio.create_task(link.connect())
        packet, ancillary, _, _ = await asyncio.to_thread(sock.recvmsg, 2000, 100)
        connecting.cancel()

    assert len(packet) == 1200
    assert ancillary[0][2][0] == 18 << 2


async def test_a_certificate_that_is_not_trusted_is_told_with_the_remedy(pair, link_to):
    async with quic_gateway(lambda asked: None, pair) as gateway:
        link = await link_to(gateway.port, trust=Trust())
        with pytest.raises(ConnectionFailed, match=r"certificate is not accepted.*give its authority as `ca`"):
            await link.connect()


async def test_a_peer_of_another_protocol_is_told(pair, link_to):
    async with quic_gateway(lambda asked: None, pair, alpn=(ALPN_NATIVE,)) as gateway:
        link = await link_to(gateway.port, alpn=ALPN_H3)
        with pytest.raises(ConnectionFailed, match="does not speak h3"):
            await link.connect()


async def test_a_port_where_nobody_listens_is_told_at_once(link_to):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    link = await link_to(port)

    with pytest.raises(ConnectionFailed, match=rf"127\.0\.0\.1:{port}: nothing answers there"):
        await link.connect()


async def test_the_clients_end_is_told_to_the_gateway(pair, link_to):
    async with quic_gateway(lambda asked: None, pair) as gateway:
        link = await link_to(gateway.port)
        await link.connect()
        link.close(3, "enough")
        link.close(4, "more than enough")
        await gateway.connections[0].wait_closed()

    assert str(link.peer.error).endswith("enough")
    assert not str(link.peer.error).endswith("more than enough")


async def test_a_gateway_that_closes_is_noticed_at_once(pair, link_to):
    async with quic_gateway(lambda asked: None, pair) as gateway:
        link = await link_to(gateway.port)
        await link.connect()
        await gateway.connections[0].wait_connected()
        expected = link.peer.expect(0)
        gateway.close_connections(0, "going home")

        with pytest.raises(ConnectionFailed, match=r"the gateway closed the connection \(going home\)"):
            await expected


async def test_a_long_wait_is_kept_alive_by_pings(pair, link_to, monkeypatch):
    monkeypatch.setattr("inferlane.transports.silence.QUIET_S", 0.0)
    async with quic_gateway(lambda asked: None, pair) as gateway:
        link = await link_to(gateway.port)
        acknowledged = asyncio.Event()
        link._on_event = lambda event: acknowledged.set() if isinstance(event, PingAcknowledged) else None
        await link.connect()
        link._check_peer()
        assert not link.quic._ping_pending  # nobody waits, so nothing is kept alive
        link.peer.expect(0)
        link.peer.heard()
        link._check_peer()

        await acknowledged.wait()


async def test_a_gateway_that_falls_silent_is_given_up(pair, link_to, monkeypatch):
    monkeypatch.setattr("inferlane.transports.silence.LONGEST_S", 0.0)
    async with quic_gateway(lambda asked: None, pair) as gateway:
        link = await link_to(gateway.port)
        await link.connect()
        expected = link.peer.expect(0)
        link._check_peer()

        with pytest.raises(ConnectionFailed, match="did not answer any more"):
            await expected


async def test_noise_does_not_disturb_a_connection(pair, link_to):
    async with quic_gateway(lambda asked: None, pair) as gateway:
        link = await link_to(gateway.port)
        await link.connect()
        for noise in (b"", b"\x00", bytes(1200), b"\xff" * 65):
            link._received([noise])

        assert link.peer.alive
