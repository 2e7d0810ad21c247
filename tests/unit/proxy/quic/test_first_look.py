# SPDX-License-Identifier: Apache-2.0
"""Datagrams that belong to no connection: any bytes are judged without an exception."""

from __future__ import annotations

from aioquic.quic.packet import QuicProtocolVersion
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.first_look import FirstLook, first_look, version_negotiation

VERSIONS = [QuicProtocolVersion.VERSION_1]


@given(st.binary(max_size=1500))
def test_any_bytes_get_a_first_look_and_no_exception(datagram: bytes) -> None:
    cid, look, initial = first_look(datagram, VERSIONS)
    if look is FirstLook.UNKNOWN_VERSION:
        assert len(version_negotiation(datagram, VERSIONS)) <= len(datagram)
    if look is FirstLook.INITIAL:
        assert len(datagram) >= 1200
        assert len(cid) >= 8
    assert (initial is not None) is (look is FirstLook.INITIAL)


def _long_header(version: int, size: int, dcid: bytes = bytes(8)) -> bytes:
    head = b"\xc0" + version.to_bytes(4, "big") + bytes([len(dcid)]) + dcid + b"\x08" + bytes(8)
    return (head + b"\x00" + b"\x44\x00").ljust(size, b"\x00")


def test_version_negotiation_only_for_full_size_datagrams() -> None:
    assert first_look(_long_header(0x1A2A3A4A, 1200), VERSIONS)[1] is FirstLook.UNKNOWN_VERSION
    assert first_look(_long_header(0x1A2A3A4A, 1199), VERSIONS)[1] is FirstLook.STRAY  # RFC 9000 section 5.2.2
    assert first_look(_long_header(0, 1200), VERSIONS)[1] is FirstLook.STRAY  # never answer an answer
    answer = version_negotiation(_long_header(0x1A2A3A4A, 1200), VERSIONS)
    assert answer[1:5] == bytes(4)
    assert QuicProtocolVersion.VERSION_1.to_bytes(4, "big") in answer


def test_a_version_that_nobody_knows_yet_need_not_look_like_version_1() -> None:
    """Only what RFC 8999 fixes is read: connection ids may have 255 bytes, and what follows them is anything."""
    destination, source = bytes(range(255)), bytes(range(1, 256))
    datagram = (b"\xc0\x1a\x2a\x3a\x4a\xff" + destination + b"\xff" + source).ljust(1200, b"\xff")
    assert first_look(datagram, VERSIONS) == (destination, FirstLook.UNKNOWN_VERSION, None)
    answer = version_negotiation(datagram, VERSIONS)
    assert answer[0] & 0xC0 == 0xC0
    assert answer[1:] == bytes(4) + b"\xff" + source + b"\xff" + destination + bytes([0, 0, 0, 1])
    assert first_look(datagram[:262] + b"\xff", VERSIONS)[1] is FirstLook.STRAY


def test_a_first_packet_with_a_short_connection_id_is_stray() -> None:
    assert first_look(_long_header(QuicProtocolVersion.VERSION_1, 1200, bytes(4)), VERSIONS)[1] is FirstLook.STRAY


def test_a_short_header_is_looked_at_for_our_id() -> None:
    assert first_look(b"\x40" + bytes(range(20)), VERSIONS) == (bytes(range(10)), FirstLook.SHORT, None)
    assert first_look(b"\x00" + bytes(range(20)), VERSIONS)[1] is FirstLook.STRAY
    assert first_look(b"\x40" + bytes(9), VERSIONS)[1] is FirstLook.STRAY
