# SPDX-License-Identifier: Apache-2.0
"""Who a connection is, beyond the process that has it: its ids say where it lives, its resets and tickets outlive us.

aioquic draws ids and reset tokens at random, so nobody but the process that drew them could steer by the ids or send a
reset, and its tickets need a store.
"""

from __future__ import annotations

import hmac
import os

from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection, QuicConnectionId
from aioquic.quic.events import ConnectionIdIssued
from aioquic.tls import CipherSuite, Direction, Epoch, NewSessionTicket, push_new_session_ticket
from cryptography.hazmat.primitives.serialization import Encoding

from proxy.keys import Keys
from proxy.quic.configuration import QuicConfiguration
from proxy.quic.connection_ids import CID_LENGTH, RANDOM_BYTES, ConnectionIds
from proxy.quic.tickets import LIFETIME_S, Tickets

__all__ = ["Identified", "Identity", "reset_token", "stateless_reset"]

_TOKEN_BYTES = 16
_SHORTEST_RESET = 21  # RFC 9000 section 10.3: 5 bytes of which 38 bits are unpredictable, and the token
_LONGEST_RESET = 43  # "at least 22 bytes longer than the id, so that it looks like a packet": 10 + 17 + 16
_FIXED_BIT = 0x40
_MOST_IDS = 4
"""A client has one in use and three to move on with. aioquic gives it 8; each more was 5 to 9 us of a handshake."""
_TICKET_BYTES = 512


def reset_token(key: bytes, cid: bytes) -> bytes:
    """The token that ends the connection with this id; whoever has the key can compute it (RFC 9000 section 10.3.2)."""
    return hmac.digest(key, cid, "sha256")[:_TOKEN_BYTES]


def stateless_reset(key: bytes, datagram: bytes, random: bytes) -> bytes | None:
    """What tells the sender of a short-header datagram that its connection is gone; None: too short to be answered.

    Always shorter than its cause, so that two endpoints that know nothing of each other stop (section 10.3.3).
    random: at least 27 unpredictable bytes.
    """
    length = min(len(datagram) - 1, _LONGEST_RESET)
    if length < _SHORTEST_RESET:
        return None
    head = bytes([_FIXED_BIT | random[0] & 0x3F]) + random[1 : length - _TOKEN_BYTES]
    return head + reset_token(key, datagram[1 : 1 + CID_LENGTH])


class Identity:
    """What the connections of one listener have in common."""

    def __init__(self, ids: ConnectionIds, keys: Keys, configuration: QuicConfiguration) -> None:
        self.ids = ids
        self.reset_key = keys.reset
        certificate = configuration.certificate
        self.tickets = Tickets(keys.ticket, b"" if certificate is None else certificate.public_bytes(Encoding.DER))

    def __repr__(self) -> str:
        return f"<Identity {self.ids!r}>"

    def issue(self, sequence_number: int) -> QuicConnectionId:
        """A new id of ours with its token."""
        cid = self.ids.issue(os.urandom(RANDOM_BYTES))
        return QuicConnectionId(cid, sequence_number, reset_token(self.reset_key, cid))


class Identified(QuicConnection):
    """A server's connection with ids, reset tokens and tickets of ours, from `identify` on."""

    _identity: Identity

    def identify(self, identity: Identity, retry_source_cid: bytes | None) -> None:
        """Before the first datagram. retry_source_cid: the id that our Retry gave it, where there was one."""
        self._identity = identity
        first = identity.issue(0)
        first.was_sent = True
        self._host_cids = [first]
        self.host_cid = self._local_initial_source_connection_id = first.cid
        self._retry_source_connection_id = retry_source_cid
        self._session_ticket_fetcher = identity.tickets.open

    def _replenish_connection_ids(self) -> None:
        while len(self._host_cids) < min(_MOST_IDS, self._remote_active_connection_id_limit):
            issued = self._identity.issue(self._host_cid_seq)
            self._host_cids.append(issued)
            self._host_cid_seq += 1
            # aioquic tells of it as it is sent, and then the listener hears of it with the next datagram only: too late
            # where that one carries it already, as quic-go's do.
            self._events.append(ConnectionIdIssued(connection_id=issued.cid))

    def _update_traffic_key(self, direction: Direction, epoch: Epoch, cipher_suite: CipherSuite, secret: bytes) -> None:
        """0-RTT is refused even where a client offers it unasked: aioquic accepts it with any ticket that it knows."""
        if epoch == Epoch.ZERO_RTT:
            self.tls.early_data_accepted = False
            return
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        if self.tls._psk_key_exchange_mode is not None:
            self._offer_ticket()

    def _offer_ticket(self) -> None:
        """As TLS would (RFC 8446 section 4.6.1), with a ticket that needs no store."""
        message = NewSessionTicket(
            ticket_lifetime=LIFETIME_S,
            ticket_age_add=int.from_bytes(os.urandom(4), "big"),
            ticket_nonce=b"",
            ticket=b"",
        )
        message.ticket = self._identity.tickets.seal(self.tls._build_session_ticket(message, []))
        buffer = Buffer(capacity=_TICKET_BYTES)
        push_new_session_ticket(buffer, message)
        self._crypto_streams[Epoch.ONE_RTT].sender.write(buffer.data)
