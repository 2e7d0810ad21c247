# SPDX-License-Identifier: Apache-2.0
"""Ids, reset tokens and tickets of ours, on real connections: the contract with aioquic's privates."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionIdIssued, HandshakeCompleted
from aioquic.tls import Context, SessionTicket
from hypothesis import given
from hypothesis import strategies as st

from proxy.keys import Keys
from proxy.quic.connection import Connection
from proxy.quic.connection_ids import CID_LENGTH, ConnectionIds
from proxy.quic.identity import Identity, reset_token, stateless_reset
from tests.fakes.quic import CLIENT, SERVER, Pair

KEYS = Keys.fresh()


def test_the_privates_we_override_are_what_they_were() -> None:
    signature = inspect.signature
    assert list(signature(QuicConnection._replenish_connection_ids).parameters) == ["self"]
    assert list(signature(QuicConnection._confirm_handshake).parameters) == ["self"]
    traffic_key = ["self", "direction", "epoch", "cipher_suite", "secret"]
    assert list(signature(QuicConnection._update_traffic_key).parameters) == traffic_key
    assert list(signature(Context._build_session_ticket).parameters) == [
        "self",
        "new_session_ticket",
        "other_extensions",
    ]
    source = inspect.getsource(QuicConnection)
    for name in (
        "_host_cids",
        "_host_cid_seq",
        "_local_initial_source_connection_id",
        "_remote_active_connection_id_limit",
        "_retry_source_connection_id",
        "_session_ticket_fetcher",
    ):
        assert f"self.{name}" in source
    assert "self._psk_key_exchange_mode" in inspect.getsource(Context)
    # Where a ticket of the next release would come from, if its server sent one by itself.
    assert "new_session_ticket_cb is not None" in inspect.getsource(Context._server_handle_finished)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


class Meeting:
    """A client that may have a ticket, and a worker; both made new for one connection."""

    def __init__(self, pair: Pair, keys: Keys, *, place: int = 3, ticket: SessionTicket | None = None) -> None:
        client = pair.client.configuration
        client.session_ticket = ticket
        self.tickets: list[SessionTicket] = []
        self.client = QuicConnection(configuration=client, session_ticket_handler=self.tickets.append)
        self.ids = ConnectionIds(place, 1, keys.steering)
        self.server = Connection(
            pair.configuration,
            self.client.original_destination_connection_id,
            datagrams=True,
            identity=Identity(self.ids, keys, pair.configuration),
        )
        self.now = 1.0
        self.client.connect(SERVER, now=self.now)
        self.completed: list[HandshakeCompleted] = []
        self.run()

    def run(self, rounds: int = 8) -> None:
        for _ in range(rounds):
            self.now += 0.05
            for datagram, _ in self.client.datagrams_to_send(self.now):
                self.server.receive_datagram(datagram, CLIENT, self.now)
            for datagram, _ in self.server.datagrams_to_send(self.now):
                self.client.receive_datagram(datagram, SERVER, self.now)
            while (event := self.server.next_event()) is not None:
                if isinstance(event, HandshakeCompleted):
                    self.completed.append(event)

    @property
    def resumed(self) -> bool:
        (completed,) = self.completed
        assert completed.session_resumed == self.client.tls.session_resumed
        assert not completed.early_data_accepted
        return completed.session_resumed


def test_every_id_of_a_connection_says_where_it_lives(pair: Pair) -> None:
    meeting = Meeting(pair, KEYS)
    given_out = [meeting.client._peer_cid, *meeting.client._peer_cid_available]
    assert len({each.cid for each in given_out}) == 4
    for each in given_out:
        assert meeting.ids.read(each.cid) == (1, 1, 3)
        assert each.stateless_reset_token == reset_token(KEYS.reset, each.cid)


def test_the_client_goes_on_under_another_id_of_the_same_place(pair: Pair) -> None:
    meeting = Meeting(pair, KEYS)
    for _ in range(20):  # retired ids are replaced by new ones of ours
        before = meeting.client._peer_cid.cid
        meeting.client.change_connection_id()
        meeting.client.send_ping(1)
        meeting.run(3)
        assert meeting.client._peer_cid.cid != before
        assert meeting.ids.read(meeting.client._peer_cid.cid) == (1, 1, 3)
        assert meeting.server.host_cid == meeting.client._peer_cid.cid
    assert len(meeting.server._host_cids) == 4


def test_a_ticket_is_good_at_every_worker_and_spares_the_certificate(pair: Pair) -> None:
    first = Meeting(pair, KEYS)
    assert not first.resumed
    (ticket,) = first.tickets
    assert ticket.max_early_data_size is None  # 0-RTT is not offered
    second = Meeting(pair, KEYS, place=7, ticket=ticket)
    assert second.resumed
    assert second.client.tls._peer_certificate is None and first.client.tls._peer_certificate is not None
    (next_ticket,) = second.tickets
    assert Meeting(pair, Keys.from_bytes(KEYS.to_bytes()), ticket=next_ticket).resumed


def test_a_ticket_of_other_keys_costs_a_full_handshake(pair: Pair) -> None:
    (ticket,) = Meeting(pair, Keys.fresh()).tickets
    assert not Meeting(pair, KEYS, ticket=ticket).resumed


def test_0_rtt_is_refused_to_those_who_just_do_it(pair: Pair) -> None:
    (ticket,) = Meeting(pair, KEYS).tickets
    ticket.max_early_data_size = 0xFFFFFFFF
    meeting = Meeting(pair, KEYS, ticket=ticket)
    assert meeting.resumed and not meeting.client.tls.early_data_accepted


@given(st.binary(min_size=CID_LENGTH, max_size=CID_LENGTH), st.integers(0, 1500), st.binary(min_size=32, max_size=32))
def test_a_reset_is_shorter_than_its_cause_and_looks_like_a_packet(cid: bytes, length: int, random: bytes) -> None:
    datagram = (b"\x41" + cid).ljust(length, b"x")
    reset = stateless_reset(KEYS.reset, datagram, random)
    if len(datagram) < 22:
        assert reset is None
    else:
        assert reset is not None and 21 <= len(reset) < len(datagram)
        assert reset[0] & 0xC0 == 0x40
        assert reset[-16:] == reset_token(KEYS.reset, cid)


def test_two_who_answer_each_other_s_resets_stop(pair: Pair) -> None:
    said, turns = b"\x40" + bytes(1199), 0
    while (answer := stateless_reset(KEYS.reset, said, bytes(32))) is not None:
        said, turns = answer, turns + 1
    assert turns < 25


def test_an_id_is_told_before_the_client_can_use_it(pair: Pair) -> None:
    """quic-go takes a new one with its first packets after the handshake: unknown then, they were answered by a reset,
    and Caddy could not speak to us."""
    meeting = Meeting(pair, KEYS)
    server, client = meeting.server, meeting.client
    for _ in range(3):
        client.change_connection_id()  # the one that it retires is replaced
        client.send_ping(1)
        meeting.now += 0.05
        for datagram, _ in client.datagrams_to_send(meeting.now):
            server.receive_datagram(datagram, CLIENT, meeting.now)
        told = set()
        while (event := server.next_event()) is not None:
            if isinstance(event, ConnectionIdIssued):
                told.add(event.connection_id)
        unsent = {each.cid for each in server._host_cids if not each.was_sent}
        assert unsent
        assert unsent <= told
        meeting.run(3)
