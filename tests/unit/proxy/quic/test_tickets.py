# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from aioquic.tls import CipherSuite, SessionTicket
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.tickets import LIFETIME_S, Tickets

KEY, CERTIFICATE = bytes(range(32)), b"the certificate"


def session(issued: datetime, cipher_suite: CipherSuite = CipherSuite.AES_256_GCM_SHA384) -> SessionTicket:
    return SessionTicket(
        age_add=1,
        cipher_suite=cipher_suite,
        not_valid_before=issued,
        not_valid_after=issued + timedelta(seconds=LIFETIME_S),
        resumption_secret=bytes(range(48)),
        server_name="a.example",
        ticket=b"",
    )


@pytest.mark.parametrize("cipher_suite", [CipherSuite.AES_256_GCM_SHA384, CipherSuite.CHACHA20_POLY1305_SHA256])
def test_what_one_worker_sealed_another_opens(cipher_suite: CipherSuite) -> None:
    now = datetime.now(UTC)
    ticket = Tickets(KEY, CERTIFICATE).seal(session(now, cipher_suite))
    opened = Tickets(KEY, CERTIFICATE).open(ticket)
    assert opened is not None and opened.is_valid
    assert (opened.cipher_suite, opened.resumption_secret) == (cipher_suite, bytes(range(48)))
    assert opened.max_early_data_size is None
    assert abs(opened.not_valid_before - now) < timedelta(seconds=1)
    assert ticket != Tickets(KEY, CERTIFICATE).seal(session(now, cipher_suite))  # observers cannot link them


def test_a_ticket_lives_a_day() -> None:
    old = Tickets(KEY, CERTIFICATE).open(
        Tickets(KEY, CERTIFICATE).seal(session(datetime.now(UTC) - timedelta(seconds=LIFETIME_S + 5)))
    )
    assert old is not None and not old.is_valid


def test_tickets_of_another_key_or_certificate_are_not_opened() -> None:
    ticket = Tickets(KEY, CERTIFICATE).seal(session(datetime.now(UTC)))
    assert Tickets(bytes(32), CERTIFICATE).open(ticket) is None
    assert Tickets(KEY, b"the next certificate").open(ticket) is None


@given(st.binary(max_size=200), st.integers(0, 79))
def test_any_bytes_are_looked_at_without_an_exception(ticket: bytes, at: int) -> None:
    tickets = Tickets(KEY, CERTIFICATE)
    assert tickets.open(ticket) is None
    sealed = bytearray(tickets.seal(session(datetime.now(UTC))))
    sealed[at] ^= 1
    assert tickets.open(bytes(sealed)) is None


def test_tickets_do_not_show_their_key() -> None:
    assert repr(Tickets(KEY, CERTIFICATE)) == "<Tickets>"
