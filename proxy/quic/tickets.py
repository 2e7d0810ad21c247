# SPDX-License-Identifier: Apache-2.0
"""Session tickets that carry their own state, sealed: every worker takes them, and the next run does, too.

aioquic hands out 64 random bytes and expects a store behind them. Ours are what RFC 8446 section 4.6.1 calls
self-encrypted: no store, nothing to share but a key. A ticket that cannot be opened costs its client a full handshake.
0-RTT stays off (identity.py), so a ticket that is shown twice replays nothing (section 8.1).

    12 bytes nonce | AES-256-GCM of(2 bytes cipher suite | 8 bytes issued, Unix seconds | resumption secret)

The certificate goes in as associated data: who resumes was shown this one.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from aioquic.tls import CipherSuite, SessionTicket
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["LIFETIME_S", "Tickets"]

LIFETIME_S = 24 * 3600
_NONCE_BYTES = 12
_HEAD_BYTES = 10


class Tickets:
    """Seals and opens. key: 32 bytes, shared by all workers. certificate: DER of the one that is served."""

    def __init__(self, key: bytes, certificate: bytes) -> None:
        self._aead = AESGCM(key)
        self._certificate = certificate

    def __repr__(self) -> str:
        return "<Tickets>"

    def seal(self, session: SessionTicket) -> bytes:
        """The ticket for a session."""
        issued = int(session.not_valid_before.timestamp())
        plain = session.cipher_suite.to_bytes(2, "big") + issued.to_bytes(8, "big") + session.resumption_secret
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, self._certificate)

    def open(self, ticket: bytes) -> SessionTicket | None:
        """The session; None: not sealed with this key for this certificate. Its times are for TLS to judge."""
        try:
            plain = self._aead.decrypt(ticket[:_NONCE_BYTES], ticket[_NONCE_BYTES:], self._certificate)
            cipher_suite = CipherSuite(int.from_bytes(plain[:2], "big"))
        except (InvalidTag, ValueError):  # ValueError: too short
            return None
        issued = datetime.fromtimestamp(int.from_bytes(plain[2:_HEAD_BYTES], "big"), UTC)
        return SessionTicket(
            age_add=0,  # only 0-RTT compares ages
            cipher_suite=cipher_suite,
            not_valid_before=issued,
            not_valid_after=issued + timedelta(seconds=LIFETIME_S),
            resumption_secret=plain[_HEAD_BYTES:],
            server_name="",
            ticket=ticket,
        )
