# SPDX-License-Identifier: Apache-2.0
"""The contract with aioquic 1.7.2: what its privates must still mean for this client to work."""

from __future__ import annotations

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    StopSendingReceived,
    StreamReset,
)
from aioquic.tls import AlertDescription

from inferlane.target import parse_target
from inferlane.transports.quic import (
    ALPN_H3,
    ALPN_NATIVE,
    ClientConnection,
    Trust,
    client_configuration,
    why_ended,
)

CLIENT, SERVER = ("192.0.2.1", 1), ("192.0.2.2", 2)
CRYPTO = 0x06


class Joined:
    """Our client and aioquic's own server in memory, on a clock that the test moves."""

    def __init__(self, pair, trust, *, server_datagrams=65535, host="localhost"):
        target = parse_target(f"quic://{host}")
        self.client = ClientConnection(configuration=client_configuration(target, trust, ALPN_NATIVE))
        served = QuicConfiguration(
            is_client=False, alpn_protocols=[ALPN_NATIVE], max_datagram_frame_size=server_datagrams
        )
        served.load_cert_chain(*pair)
        self.client.connect(SERVER, now=0.0)
        self.server = QuicConnection(
            configuration=served, original_destination_connection_id=self.client.original_destination_connection_id
        )
        self.now = 0.0
        self.at_server = []
        self.exchange()

    def exchange(self):
        for _ in range(8):
            self.now += 0.01
            for packet, _ in self.client.datagrams_to_send(self.now):
                self.server.receive_datagram(packet, CLIENT, self.now)
            self.at_server += iter(self.server.next_event, None)
            for packet, _ in self.server.datagrams_to_send(self.now):
                self.client.receive_datagram(packet, SERVER, self.now)

    def of(self, kind):
        return [event for event in self.at_server if isinstance(event, kind)]


@pytest.fixture
def joined(pair, trust):
    return Joined(pair, trust)


def test_the_longest_datagram_that_is_promised_fits(joined):
    assert joined.client.datagram_capacity == 1158

    joined.client.send_datagram_frame(bytes(joined.client.datagram_capacity))
    joined.client.send_datagram_frame(b"behind it")
    joined.exchange()

    assert [len(event.data) for event in joined.of(DatagramFrameReceived)] == [1158, 9]


@pytest.mark.parametrize(("granted", "capacity"), [(None, 0), (500, 497), (2, 0)])
def test_the_peer_may_take_less_or_none(pair, trust, granted, capacity):
    assert Joined(pair, trust, server_datagrams=granted).client.datagram_capacity == capacity


def test_a_full_queue_loses_its_oldest_datagram(joined):
    for n in range(1025):
        joined.client.send_datagram_frame(n.to_bytes(2))
    for _ in range(10):
        joined.exchange()

    assert sorted(event.data for event in joined.of(DatagramFrameReceived)) == [n.to_bytes(2) for n in range(1, 1025)]


def test_an_abandoned_stream_is_reset_and_stopped(joined):
    joined.client.send_stream_data(0, b"half a ques")
    joined.exchange()

    joined.client.abandon(0, 22)
    joined.client.abandon(400, 22)  # over and forgotten
    joined.exchange()

    assert [(each.stream_id, each.error_code) for each in joined.of(StreamReset)] == [(0, 22)]
    assert [(each.stream_id, each.error_code) for each in joined.of(StopSendingReceived)] == [(0, 22)]


def test_an_end_is_known_at_once_and_not_three_timeouts_later(joined):
    assert joined.client.ending is None

    joined.server.close(error_code=5, reason_phrase="going home")
    joined.exchange()

    assert joined.client.ending == ConnectionTerminated(error_code=5, frame_type=None, reason_phrase="going home")


def test_the_round_trip_is_measured(joined):
    assert 0.0 <= joined.client.round_trip_s < 0.1


def test_a_certificate_for_another_name_is_refused(pair, trust):
    ending = Joined(pair, trust, host="elsewhere.example").client.ending

    assert why_ended(ending, ALPN_NATIVE).startswith("the certificate is not accepted (hostname 'elsewhere.example'")


def test_the_name_to_verify_may_be_given(pair):
    trust = Trust.load(pair[0], insecure=False, server_name="localhost")

    assert Joined(pair, trust, host="elsewhere.example").client.ending is None


def test_insecure_accepts_anything(pair):
    trust = Trust.load(None, insecure=True, server_name=None)

    assert Joined(pair, trust, host="elsewhere.example").client.ending is None


def test_datagrams_are_offered_under_the_protocol_that_has_a_meaning_for_them(trust):
    target = parse_target("quic://[::1]")

    assert client_configuration(target, trust, ALPN_NATIVE).max_datagram_frame_size == 65535
    assert client_configuration(target, trust, ALPN_H3).max_datagram_frame_size is None
    assert client_configuration(target, trust, ALPN_H3).server_name == "::1"


@pytest.mark.parametrize("content", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_a_ca_file_that_holds_no_certificate_is_an_error_at_once(tmp_path, content):
    file = tmp_path / "ca.pem"
    file.write_text(content)

    with pytest.raises(ValueError, match=r"ca\.pem: "):
        Trust.load(file, insecure=False, server_name=None)


def test_a_missing_ca_file_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        Trust.load(tmp_path / "ca.pem", insecure=False, server_name=None)


@pytest.mark.parametrize(
    ("code", "frame", "said", "expected"),
    [
        (0x100, None, "", "the gateway closed the connection (0x100)"),
        (0, None, "draining", "the gateway closed the connection (draining)"),
        (0x0C, 0, "", "the gateway closed the connection (0xc)"),
        (1, 0, "Idle timeout", "the gateway did not answer any more"),
        (0x100 + AlertDescription.unknown_ca, CRYPTO, "no root", "the certificate is not accepted (no root); give its"),
        (0x100 + AlertDescription.no_application_protocol, CRYPTO, "", "the peer does not speak h3"),
        (0x0A, 8, "bad frame", "the connection failed (bad frame)"),
        (0x0A, 8, "", "the connection failed (0xa)"),
    ],
)
def test_an_end_is_told_in_words(code, frame, said, expected):
    event = ConnectionTerminated(error_code=code, frame_type=frame, reason_phrase=said)

    assert why_ended(event, ALPN_H3).startswith(expected)
