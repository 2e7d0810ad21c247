# SPDX-License-Identifier: Apache-2.0
"""Short-header packets are sealed and opened as aioquic does it, under each cipher; anything else does not open."""

from __future__ import annotations

import pytest
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.protection import PACKET_OVERHEAD, open_packet, seal_packet

CID = b"connection"
SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]


def context(suite: CipherSuite) -> CryptoContext:
    keys = CryptoContext()
    secret = bytes(48 if suite is CipherSuite.AES_256_GCM_SHA384 else 32)
    keys.setup(cipher_suite=suite, secret=secret, version=QuicProtocolVersion.VERSION_1)
    return keys


def sealed_by_aioquic(keys: CryptoContext, number: int, plain: bytes, first: int = 0x41) -> bytes:
    return keys.encrypt_packet(bytes((first,)) + CID + (number & 0xFFFF).to_bytes(2, "big"), plain, number)


@given(st.sampled_from(SUITES), st.integers(0, 1 << 40), st.binary(min_size=2, max_size=1200), st.booleans())
def test_a_packet_is_sealed_as_aioquic_seals_it(suite: CipherSuite, number: int, plain: bytes, spin: bool) -> None:
    keys = context(suite)
    first = 0x41 | spin << 5
    sealed = seal_packet(keys, first, CID, number, plain)
    assert sealed == sealed_by_aioquic(keys, number, plain, first)
    assert len(sealed) == PACKET_OVERHEAD + len(CID) + len(plain)
    assert open_packet(keys, sealed, 1 + len(CID), number) == (first, number, plain)


@given(st.integers(0, 1 << 40), st.integers(-30000, 30000))
def test_a_number_is_completed_from_the_one_expected_as_aioquic_completes_it(number: int, ahead: int) -> None:
    keys = context(SUITES[0])
    expected = max(0, number + ahead)
    packet = sealed_by_aioquic(keys, number, b"plain")
    _, payload, found, _ = keys.decrypt_packet(packet, 1 + len(CID), expected)
    opened = open_packet(keys, packet, 1 + len(CID), expected)
    assert opened is not None
    assert opened[1:] == (found, payload)


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_not_plain_does_not_open(suite: CipherSuite) -> None:
    keys, end = context(suite), 1 + len(CID)
    good = sealed_by_aioquic(keys, 7, b"plain")
    assert open_packet(keys, good, end, 7)
    assert open_packet(keys, good[:-1] + bytes((good[-1] ^ 1,)), end, 7) is None
    assert open_packet(keys, good[: end + 10], end, 7) is None
    assert open_packet(keys, sealed_by_aioquic(keys, 7, b"plain", 0x41 | 0x08), end, 7) is None, "reserved bits"
    assert open_packet(keys, sealed_by_aioquic(keys, 7, b"plain", 0x41 | 0x04), end, 7) is None, "key phase"
    keys.teardown()
    assert open_packet(keys, good, end, 7) is None


def test_the_pair_of_a_connection_counts_phases_as_we_take_them() -> None:
    pair = CryptoPair()
    pair.update_key()
    assert pair.key_phase != pair.recv.key_phase, "so nothing is sealed while an update is asked for"
