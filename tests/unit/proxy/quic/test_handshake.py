# SPDX-License-Identifier: Apache-2.0
"""A cheap handshake is a whole one, and leaves little behind."""

from __future__ import annotations

import gc
import ssl
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from aioquic._crypto import CryptoError
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import KeyUnavailableError
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.stream import QuicStream
from aioquic.tls import CipherSuite, Epoch
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.quic.configuration import MOST_GAPS
from proxy.quic.connection import Connection
from proxy.quic.frames import varint
from proxy.quic.handshake import MOST_OF_TLS, EncodedCertificate, InitialKeys
from proxy.quic.protection import seal_packet
from tests.fakes.quic import CLIENT, SERVER, Pair

V1, V2 = QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.mark.parametrize("versions", [[V1], [V2], [V1, V2], [V2, V1]])
@pytest.mark.parametrize("suite", list(CipherSuite)[:3])
def test_every_version_and_cipher_suite_comes_through(pair: Pair, versions: list[int], suite: CipherSuite) -> None:
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name="localhost", supported_versions=versions
    )
    configuration.cipher_suites = [suite]
    configuration.load_verify_locations(cadata=pair.configuration.certificate.public_bytes(Encoding.PEM))
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, now=1.0)
    server = Connection(pair.configuration, client.original_destination_connection_id, datagrams=False)
    for _ in range(4):
        for datagram, _ in client.datagrams_to_send(1.0):
            server.receive_datagram(datagram, CLIENT, 1.0)
        for datagram, _ in server.datagrams_to_send(1.0):
            client.receive_datagram(datagram, SERVER, 1.0)
    assert server.established
    assert client._handshake_confirmed
    assert client.tls.key_schedule is not None
    assert client.tls.key_schedule.cipher_suite == suite


def test_the_cheapest_common_cipher_is_taken(pair: Pair) -> None:
    assert pair.server._cryptos[Epoch.ONE_RTT].send.cipher_suite == CipherSuite.AES_128_GCM_SHA256


def test_initial_keys_are_derived_when_asked_for_and_never_after_they_were_discarded() -> None:
    keys = InitialKeys(b"destination")
    assert not keys
    assert keys[V1].recv.is_valid()
    keys.discarded = True
    assert keys[V1].recv.is_valid()
    with pytest.raises(KeyUnavailableError):
        keys[V2].decrypt_packet(bytes(100), 20, 0)


def test_a_late_initial_packet_is_dropped(pair: Pair) -> None:
    client = QuicConnection(configuration=pair.client.configuration)
    client.connect(SERVER, now=pair.now)
    server = Connection(pair.configuration, client.original_destination_connection_id, datagrams=False)
    hello = client.datagrams_to_send(pair.now)
    for _ in range(4):
        for datagram, _ in hello:
            server.receive_datagram(datagram, CLIENT, pair.now)
        for datagram, _ in server.datagrams_to_send(pair.now):
            client.receive_datagram(datagram, SERVER, pair.now)
        hello, first = client.datagrams_to_send(pair.now), hello
        if server.established:
            break
    server.receive_datagram(first[0][0], CLIENT, pair.now)
    assert not server.ending
    assert server.established


def test_what_the_handshake_needed_is_gone_after_it(pair: Pair) -> None:
    server = pair.server
    assert not server._crypto_buffers
    assert server.tls.key_schedule is None
    assert all(pair_of_keys.recv.aead is None for pair_of_keys in server._cryptos_initial.values())


def test_an_idle_connection_is_small(pair: Pair) -> None:
    """100 KB are promised; aioquic's own took 84 KiB, of which 48 were buffers of its handshake."""
    tracemalloc.start()
    try:
        configuration = pair.client.configuration
        configuration.verify_mode = ssl.CERT_NONE
        made = Pair.__new__(Pair)
        made.__dict__.update(vars(pair))
        made.client = QuicConnection(configuration=configuration)
        made.client.connect(SERVER, now=made.now)
        made.server = Connection(pair.configuration, made.client.original_destination_connection_id, datagrams=False)
        made.run(20)
        made.take()
        assert made.server.established
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        del made.server
        gc.collect()
        assert before - tracemalloc.get_traced_memory()[0] < 48 * 1024
    finally:
        tracemalloc.stop()


def begun(pair: Pair, idle_timeout_s: float = 60.0) -> tuple[QuicConnection, Connection]:
    """Another client of the pair's, and the server that it has not spoken to yet."""
    configuration = replace(pair.client.configuration, idle_timeout=idle_timeout_s)
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, now=pair.now)
    return client, Connection(pair.configuration, client.original_destination_connection_id, datagrams=False)


@pytest.mark.parametrize("after_the_handshake", [False, True])
def test_a_handshake_message_that_never_ends_ends_the_connection(pair: Pair, after_the_handshake: bool) -> None:
    """TLS lets one have 16 MiB, which anybody can announce; aioquic keeps what comes of it, and copies it each time."""
    client, server = begun(pair)
    epoch, kind, at = (Epoch.ONE_RTT, 0x41, 0) if after_the_handshake else (Epoch.INITIAL, 0, 0)
    if after_the_handshake:
        client, server = pair.client, pair.server
    piece = b"\x01\xff\xff\xff" + bytes(1000)
    for _ in range(200):
        if after_the_handshake:
            frame = b"\x06" + varint(at) + varint(len(piece)) + piece
            keys, number = client._cryptos[epoch].send, client._packet_number
            client._packet_number += 1
            server.receive_datagram(seal_packet(keys, kind, client._peer_cid.cid, number, frame), CLIENT, pair.now)
        else:
            stream = client._crypto_streams[epoch] = QuicStream()
            stream.sender._buffer_start = stream.sender._buffer_stop = at
            stream.sender.write(piece)
            client._loss._cc.bytes_in_flight = 0
            for datagram, _ in client.datagrams_to_send(pair.now):
                server.receive_datagram(datagram, CLIENT, pair.now)
        at += len(piece)
        server.datagrams_to_send(pair.now)
        if server.ending:
            break
        assert len(server.tls._receive_buffer) <= MOST_OF_TLS + len(piece)
    assert server.ending
    assert server._close_event is not None
    assert server._close_event.error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED


@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.ONE_RTT])
def test_a_handshake_message_in_crumbs_ends_the_connection(pair: Pair, epoch: Epoch) -> None:
    """Anybody can send them, from a forged address, and aioquic walks all ranges for each."""
    client, server = (pair.client, pair.server) if epoch is Epoch.ONE_RTT else begun(pair)
    for datagram, _ in client.datagrams_to_send(pair.now):
        server.receive_datagram(datagram, CLIENT, pair.now)
    crumbs = b"".join(b"\x06" + varint(50_000 + 2 * each) + b"\x01a" for each in range(MOST_GAPS + 1))
    keys = client._cryptos[epoch].send
    if epoch is Epoch.ONE_RTT:
        packet = seal_packet(keys, 0x41, client._peer_cid.cid, client._packet_number, crumbs)
    else:
        number = client._packet_number
        ids = b"".join(bytes([len(each)]) + each for each in (client._peer_cid.cid, client.host_cid))
        length = (0x4000 | 2 + len(crumbs) + 16).to_bytes(2, "big")
        head = b"\xc1\x00\x00\x00\x01" + ids + b"\x00" + length + number.to_bytes(2, "big")
        packet = keys.encrypt_packet(head, crumbs, number)
    assert server._close_event is None
    server.receive_datagram(packet, CLIENT, pair.now)
    assert server._close_event is not None
    assert server._close_event.error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED


def test_a_client_that_names_an_idle_timeout_of_zero_has_none(pair: Pair) -> None:
    """RFC 9000 section 10.1; for aioquic it is over after three probe timeouts."""
    client, server = begun(pair, idle_timeout_s=0.0)
    for _ in range(4):
        for datagram, _ in client.datagrams_to_send(pair.now):
            server.receive_datagram(datagram, CLIENT, pair.now)
        for datagram, _ in server.datagrams_to_send(pair.now):
            client.receive_datagram(datagram, SERVER, pair.now)
    assert server.established
    assert server._close_at == pair.now + pair.configuration.idle_timeout


def test_a_certificate_is_encoded_as_it_is() -> None:
    assert EncodedCertificate(b"der").public_bytes(Encoding.DER) == b"der"
    assert issubclass(KeyUnavailableError, CryptoError)


@pytest.mark.parametrize(("retried_from", "proved"), [(CLIENT, True), (("192.0.2.99", 40000), False), (None, False)])
def test_the_address_that_showed_a_retry_s_token_is_proved_and_no_other(
    pair: Pair, retried_from: tuple[str, int] | None, proved: bool
) -> None:
    """RFC 9000 section 8.1.2. Whoever has a token may forge the address of the packets that come after it."""
    client = QuicConnection(configuration=pair.client.configuration)
    client.connect(SERVER, now=1.0)
    (hello,) = [datagram for datagram, _ in client.datagrams_to_send(1.0)][:1]
    server = Connection(
        pair.configuration,
        client.original_destination_connection_id,
        datagrams=False,
        retry_source_cid=b"retried!",
        retried_from=retried_from,
    )
    server.receive_datagram(hello, CLIENT, 1.0)
    assert server._network_paths[0].is_validated is proved
    assert server._network_paths[0].can_send(1 << 20) is proved
