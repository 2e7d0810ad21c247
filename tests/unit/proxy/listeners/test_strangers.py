# SPDX-License-Identifier: Apache-2.0
"""What those are told whom no connection expects. Clients are real, the wire is a list."""

from __future__ import annotations

import secrets
import ssl
from collections import Counter
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from proxy.certificate import development_certificate
from proxy.keys import Keys
from proxy.listeners import strangers as strangers_module
from proxy.listeners.strangers import MOST_CONNECTIONS, RETRY_FROM, Crowd, Newcomer, Strangers
from proxy.listeners.udp import Address
from proxy.quic.configuration import server_configuration
from proxy.quic.connection_ids import ConnectionIds
from proxy.quic.identity import Identity, reset_token
from proxy.quic.retry import RETRY_CID_LENGTH, Retries
from tests.fakes.quic import CLIENT, SERVER

CALM, BUSY = Crowd(0, 0, False), Crowd(RETRY_FROM, RETRY_FROM, False)
KEYS = Keys.fresh()


class Door:
    """One worker's strangers, and what they were told."""

    def __init__(self, state_dir: Path, *, place: int = 1, keys: Keys = KEYS) -> None:
        configuration = server_configuration(*development_certificate(state_dir), ["h3"])
        self.ids = ConnectionIds(place, 0, keys.steering)
        self.counts: Counter[str] = Counter()
        self.said: list[bytes] = []
        self.strangers = Strangers(
            configuration, Identity(self.ids, keys, configuration), Retries(keys.retry), self.counts, self._say
        )

    def _say(self, datagram: bytes, address: Address) -> None:
        assert address == CLIENT
        self.said.append(datagram)

    def meet(self, datagram: bytes, crowd: Crowd = CALM, now: float = 1.0) -> Newcomer | None:
        return self.strangers.meet(datagram, CLIENT, now, crowd)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def a_client() -> QuicConnection:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name="localhost")
    configuration.verify_mode = ssl.CERT_NONE
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, now=1.0)
    return client


def first_of(client: QuicConnection) -> bytes:
    ((datagram, _), *_) = client.datagrams_to_send(1.0)
    return datagram


def test_a_newcomer_is_let_in_while_there_is_room(door: Door) -> None:
    client = a_client()
    cid = client.original_destination_connection_id
    assert door.meet(first_of(client)) == Newcomer(cid, cid, None)
    assert not door.said and not door.counts


def test_under_pressure_a_newcomer_proves_its_address_to_any_worker(door: Door, tmp_path: Path) -> None:
    client = a_client()
    original = client.original_destination_connection_id
    assert door.meet(first_of(client), BUSY) is None
    assert door.counts == {"retries": 1}
    (retry,) = door.said
    client.receive_datagram(retry, SERVER, 1.1)
    newcomer = Door(tmp_path, place=2).meet(first_of(client), BUSY, now=1.2)
    assert newcomer is not None and newcomer.original_cid == original
    assert newcomer.cid == newcomer.retry_cid and len(newcomer.cid) == RETRY_CID_LENGTH


def test_a_late_or_foreign_proof_is_refused_at_once(door: Door, tmp_path: Path) -> None:
    """The client takes no second Retry, so it must not be left to wait."""
    client = a_client()
    door.meet(first_of(client), BUSY)
    client.receive_datagram(door.said.pop(), SERVER, 1.1)
    again = first_of(client)
    other_keys = Door(tmp_path, keys=Keys.fresh())
    for worker, crowd, now in ((door, CALM, 32.0), (door, BUSY, 32.0), (other_keys, CALM, 1.2)):
        assert worker.meet(again, crowd, now) is None
        assert worker.counts["invalid_token"] and len(worker.said.pop()) < 100


def test_beyond_the_most_connections_newcomers_are_refused(door: Door) -> None:
    assert door.meet(first_of(a_client()), Crowd(0, MOST_CONNECTIONS, False)) is None
    assert door.counts == {"too_many_connections": 1} and len(door.said) == 1


def test_a_worker_that_drains_takes_nobody(door: Door) -> None:
    assert door.meet(first_of(a_client()), Crowd(RETRY_FROM, 0, True)) is None
    assert door.counts == {"draining": 1} and not door.said


def test_whoever_has_a_connection_that_is_gone_is_told(door: Door) -> None:
    """Of a worker that crashed in this place, of a generation that has drained, and of the run before this one."""
    for number, place in enumerate((1, 5, 200)):
        cid = ConnectionIds(place, 9, KEYS.steering).issue(secrets.token_bytes(7))
        assert door.meet(b"\x41" + cid + bytes(60)) is None
        assert door.counts == {"stateless_resets": number + 1}
        assert door.said.pop().endswith(reset_token(KEYS.reset, cid))


def test_no_reset_for_a_living_connection_of_another_worker(door: Door) -> None:
    door.strangers.siblings = frozenset({0, 2, 3})
    cid = ConnectionIds(2, 0, KEYS.steering).issue(bytes(7))
    assert door.meet(b"\x41" + cid + bytes(60)) is None
    assert door.meet(b"\xc1\x00\x00\x00\x01\x0a" + cid + b"\x00" + bytes(1200)) is None
    assert door.counts == {"misdirected": 2} and not door.said


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x41" + bytes(10) + bytes(60),
        b"\x41" + ConnectionIds(1, 0, bytes(32)).issue(bytes(7)) + bytes(60),
        b"\x41" + ConnectionIds(1, 0, KEYS.steering).issue(bytes(7)) + bytes(10),
        b"\x01" + ConnectionIds(1, 0, KEYS.steering).issue(bytes(7)) + bytes(60),
        b"\xe1\x00\x00\x00\x01\x0a" + ConnectionIds(1, 0, KEYS.steering).issue(bytes(7)) + bytes(1200),
        b"\x41",
        b"\x80",
        b"\xff" * 1300,
    ],
    ids=["no id", "an id of others", "too short", "no fixed bit", "a handshake packet", "runt", "long runt", "noise"],
)
def test_no_reset_for_what_is_no_packet_of_ours(door: Door, datagram: bytes) -> None:
    assert door.meet(datagram) is None
    assert door.counts["stateless_resets"] == 0
    assert all(each[0] & 0x80 for each in door.said)  # version negotiation at most


def test_two_gateways_with_the_same_key_do_not_answer_each_other(door: Door) -> None:
    door.meet(b"\x41" + door.ids.issue(bytes(7)) + bytes(1190))
    answered = 0
    for _ in range(50):
        if not door.said:
            break
        door.meet(door.said.pop())
        answered += 1
    assert answered < 25


@pytest.mark.parametrize("what", ["stateless_resets", "retries", "too_many_connections"])
def test_what_is_said_to_strangers_has_a_rate(door: Door, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = first_of(a_client())
    datagram, crowd, rate = {
        "stateless_resets": (b"\x41" + door.ids.issue(bytes(7)) + bytes(60), CALM, strangers_module.RESETS_S),
        "retries": (first, BUSY, strangers_module.RETRIES_S),
        "too_many_connections": (first, Crowd(0, MOST_CONNECTIONS, False), strangers_module.REFUSALS_S),
    }[what]
    for now, heard in ((1.0, rate), (1.5, rate // 2), (1.5, 0)):
        for _ in range(rate + 10):
            assert door.meet(datagram, crowd, now) is None
        assert len(door.said) == pytest.approx(heard, abs=1)
        door.said.clear()
