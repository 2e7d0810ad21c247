# SPDX-License-Identifier: Apache-2.0
"""Datagrams that no connection has asked for: what they are, and the answer to a version that nobody speaks."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicHeader as Initial
from aioquic.quic.packet import QuicPacketType, encode_quic_version_negotiation, pull_quic_header

from proxy.quic.configuration import CID_LENGTH

__all__ = ["FirstLook", "Initial", "Look", "first_look", "version_negotiation"]

_INITIAL_MINIMUM = 1200  # RFC 9000 section 14.1
_SHORTEST_FIRST_ID = 8  # section 7.2
_LONG_HEADER, _FIXED_BIT = 0x80, 0x40


class FirstLook(Enum):
    """What a datagram that belongs to no connection is."""

    INITIAL = "initial"
    UNKNOWN_VERSION = "unknown_version"
    SHORT = "short"
    """Of a connection, if its id is one of ours, that nobody here has any more."""
    STRAY = "stray"


class Look(NamedTuple):
    """What a datagram is if no connection has its destination id."""

    destination: bytes
    kind: FirstLook
    initial: Initial | None = None
    """Its header, if it is a client's first packet."""


def first_look(datagram: bytes, versions: list[int]) -> Look:
    """The destination connection id, and what the datagram is if no connection has that id. Never raises."""
    if len(datagram) > CID_LENGTH and not datagram[0] & _LONG_HEADER:
        kind = FirstLook.SHORT if datagram[0] & _FIXED_BIT else FirstLook.STRAY
        return Look(datagram[1 : 1 + CID_LENGTH], kind)
    ids = _connection_ids(datagram)
    if ids is None:
        return Look(b"", FirstLook.STRAY)
    destination, version = ids[0], int.from_bytes(datagram[1:5], "big")
    if version == 0 or len(datagram) < _INITIAL_MINIMUM:
        return Look(
            destination, FirstLook.STRAY
        )  # or two servers would answer each other for ever (RFC 9000 section 6.1)
    if version not in versions:
        return Look(destination, FirstLook.UNKNOWN_VERSION)
    try:
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=CID_LENGTH)
    except ValueError:
        return Look(destination, FirstLook.STRAY)
    if header.packet_type != QuicPacketType.INITIAL or len(destination) < _SHORTEST_FIRST_ID:
        return Look(destination, FirstLook.STRAY)
    return Look(destination, FirstLook.INITIAL, header)


def version_negotiation(datagram: bytes, versions: list[int]) -> bytes:
    """The answer to an unknown version: at most 525 bytes, so never longer than its cause."""
    destination, source = _connection_ids(datagram) or (b"", b"")
    answer = encode_quic_version_negotiation(
        source_cid=destination, destination_cid=source, supported_versions=versions
    )
    # On a port that other protocols share this bit has to tell QUIC from them (RFC 9000 section 17.2.1).
    return bytes([answer[0] | _FIXED_BIT]) + answer[1:]


def _connection_ids(datagram: bytes) -> tuple[bytes, bytes] | None:
    """Destination and source, from where they are in every version (RFC 8999 section 5.1); None: not there."""
    if len(datagram) < 7 or datagram[0] & (_LONG_HEADER | _FIXED_BIT) != _LONG_HEADER | _FIXED_BIT:
        return None
    at = 6 + datagram[5]
    if at >= len(datagram) or at + 1 + datagram[at] > len(datagram):
        return None
    return datagram[6:at], datagram[at + 1 : at + 1 + datagram[at]]
