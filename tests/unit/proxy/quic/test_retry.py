# SPDX-License-Identifier: Apache-2.0
"""Tokens, and what a real client makes of the packets."""

from __future__ import annotations

import ssl

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicProtocolVersion
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.quic.first_look import Initial, first_look
from proxy.quic.retry import TOKEN_LIFETIME_S, QuicErrorCode, Retries, Verdict, refusal, retry_packet

KEY = bytes(range(32))
CLIENT, SERVER = ("192.0.2.1", 40000), ("192.0.2.2", 4433)
VERSIONS = [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2]
cids = st.binary(min_size=8, max_size=20)


@given(cids, st.floats(0, 1e9), st.floats(0, TOKEN_LIFETIME_S - 0.01))
def test_every_worker_takes_the_token_for_half_a_minute(original: bytes, now: float, later: float) -> None:
    token = Retries(KEY).mint(CLIENT, original, b"retried!", now)
    assert Retries(KEY).look(token, CLIENT, b"retried!", now + later) == (Verdict.VALID, original)
    late = Retries(KEY).look(token, CLIENT, b"retried!", now + TOKEN_LIFETIME_S + 0.01)
    assert late == (Verdict.INVALID, b"")


def test_a_token_is_good_for_one_client() -> None:
    token = Retries(KEY).mint(CLIENT, b"original", b"retried!", 1.0)
    for address, cid in (
        (("192.0.2.1", 40001), b"retried!"),
        (("192.0.2.3", 40000), b"retried!"),
        (CLIENT, b"other..."),
    ):
        assert Retries(KEY).look(token, address, cid, 1.0).verdict is Verdict.INVALID
    assert Retries(bytes(32)).look(token, CLIENT, b"retried!", 1.0).verdict is Verdict.INVALID
    assert Retries(KEY).look(token[:10], CLIENT, b"retried!", 1.0).verdict is Verdict.INVALID


OUR_MARK = Retries(KEY).mint(CLIENT, b"", b"", 1.0)[:4]


@given(st.binary(max_size=100))
@example(OUR_MARK)
@example(OUR_MARK + bytes(60))
def test_tokens_of_others_are_as_good_as_none(token: bytes) -> None:
    """Unless they say that they are a Retry's of ours."""
    verdict = Retries(KEY).look(token, CLIENT, b"retried!", 1.0).verdict
    assert verdict is (Verdict.INVALID if token.startswith(OUR_MARK) else Verdict.ABSENT)


def a_client(version: int) -> QuicConnection:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="localhost")
    configuration.verify_mode = ssl.CERT_NONE
    configuration.original_version = version
    configuration.supported_versions = VERSIONS
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, now=1.0)
    return client


def first_packet(client: QuicConnection) -> Initial:
    ((datagram, _), *_) = client.datagrams_to_send(1.0)
    initial = first_look(datagram, VERSIONS).initial
    assert initial is not None
    return initial


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_comes_back_with_the_token(version: int) -> None:
    client = a_client(version)
    initial = first_packet(client)
    token = Retries(KEY).mint(CLIENT, initial.destination_cid, b"retried!", 1.0)
    client.receive_datagram(retry_packet(initial, b"retried!", token), SERVER, 1.1)
    again = first_packet(client)
    assert (again.destination_cid, again.token) == (b"retried!", token)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("error", [QuicErrorCode.INVALID_TOKEN, QuicErrorCode.CONNECTION_REFUSED])
def test_a_client_takes_no_for_an_answer(version: int, error: QuicErrorCode) -> None:
    client = a_client(version)
    answer = refusal(first_packet(client), error)
    assert len(answer) < 100
    client.receive_datagram(answer, SERVER, 1.1)
    while (timer := client.get_timer()) is not None:
        client.handle_timer(timer)
    events = []
    while (event := client.next_event()) is not None:
        events.append(event)
    (terminated,) = (each for each in events if isinstance(each, ConnectionTerminated))
    assert terminated.error_code == error


def test_retries_do_not_show_their_key() -> None:
    assert repr(Retries(KEY)) == "<Retries>"
