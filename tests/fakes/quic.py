# SPDX-License-Identifier: Apache-2.0
"""A real aioquic client and our server connection, joined in memory: no socket, and a clock that tests move."""

from __future__ import annotations

import ssl
from pathlib import Path

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import H3Event
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

from proxy.certificate import development_certificate
from proxy.quic.configuration import server_configuration
from proxy.quic.connection import Connection

CLIENT = ("192.0.2.1", 40000)
SERVER = ("192.0.2.2", 4433)


class Pair:
    """One client, one server connection, and the lossless wire between them."""

    def __init__(
        self,
        state_dir: Path,
        *,
        alpn: str = "h3",
        datagrams: bool = True,
        client_datagrams: bool = True,
        step_s: float = 0.05,
        cid_length: int = 8,
    ) -> None:
        certificate, key = development_certificate(state_dir)
        self.configuration = server_configuration(certificate, key, ["h3", "inferlane/1"])
        client = QuicConfiguration(
            is_client=True, alpn_protocols=[alpn], server_name="localhost", connection_id_length=cid_length
        )
        client.verify_mode = ssl.CERT_NONE
        if client_datagrams:
            client.max_datagram_frame_size = 65535
        self.now = 100.0
        self._step_s = step_s
        self.quiet_rounds = 0
        """Rounds in which the server had nothing to send and said so; that it then sends nothing is checked in each."""
        self.client = QuicConnection(configuration=client)
        self.client.connect(SERVER, now=self.now)
        self.server = Connection(
            self.configuration, self.client.original_destination_connection_id, datagrams=datagrams
        )
        self.client_events: list[QuicEvent] = []
        self.server_events: list[QuicEvent] = []
        self.run()

    def run(self, rounds: int = 12) -> None:
        """Carry everything that either side wants to say, until both are quiet."""
        for _ in range(rounds):
            self.now += self._step_s
            for each in (self.client, self.server):
                timer = each.get_timer()
                if timer is not None and timer <= self.now:
                    each.handle_timer(self.now)
            said = self.client.datagrams_to_send(self.now)
            for datagram, _ in said:
                self.server.receive_datagram(datagram, CLIENT, self.now)
            self.take()
            quiet = bool(self.server._network_paths) and self.server.quiet(self.now)
            if quiet:  # ours would let a waiting acknowledgement go along with what there is: ask the bare connection
                answered = QuicConnection.datagrams_to_send(self.server, self.now)
                assert not answered, "the connection said that it had nothing to send"
            else:
                answered = self.server.datagrams_to_send(self.now) if self.server._network_paths else []
            self.quiet_rounds += quiet
            for datagram, _ in answered:
                self.client.receive_datagram(datagram, SERVER, self.now)
            self.take()

    def take(self) -> None:
        """Move events to where tests look."""
        while (event := self.server.next_event()) is not None:
            self.server_events.append(event)
        while (event := self.client.next_event()) is not None:
            self.client_events.append(event)

    @property
    def negotiated(self) -> str | None:
        """The ALPN that the server settled on."""
        for event in self.server_events:
            if isinstance(event, ProtocolNegotiated):
                return event.alpn_protocol
        return None


class Http3Client:
    """aioquic's own HTTP/3 on the client of a pair, for what well-behaved clients send."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.http = H3Connection(pair.client)

    def events(self) -> list[H3Event]:
        """HTTP events of everything the client received so far."""
        found = []
        for event in self.pair.client_events:
            found += self.http.handle_event(event)
        self.pair.client_events.clear()
        return found
