# SPDX-License-Identifier: Apache-2.0
"""Answers to a client's first packet that leave no state behind: Retry, and a close for those who get no connection.

A Retry's token is all that we remember of a client: sealed with a key that every worker has, so that whichever gets the
second packet goes on. The token is bound to the client's address, to both connection ids and to half a minute.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import NamedTuple

from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    encode_long_header_first_byte,
    encode_quic_retry,
)
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["RETRY_CID_LENGTH", "TOKEN_LIFETIME_S", "QuicErrorCode", "Retries", "Verdict", "refusal", "retry_packet"]

TOKEN_LIFETIME_S = 30.0
"""RFC 9000 section 8.1.3: a client comes back at once, so little is enough."""
RETRY_CID_LENGTH = 8
"""Not the length of our own ids: the packet that brings the token back is steered to those who take new connections,
even if the worker that asked for it has begun to drain."""
_MARK = b"\xf1Rt1"
"""Before every token of a Retry, whichever key it was sealed with. A token without it is no Retry's."""
_NONCE_BYTES = 12
_MILLISECOND_BYTES = 8


class Verdict(Enum):
    """What a token says."""

    ABSENT = "absent"
    """Nothing, or it comes from another server's NEW_TOKEN: as if there were none (section 8.1.3)."""
    VALID = "valid"
    INVALID = "invalid"
    """Of a Retry, but not of this client's, or too old. It will not accept a second Retry, so it is told at once to
    begin anew (section 8.1.2)."""


class Proof(NamedTuple):
    """A token, looked at."""

    verdict: Verdict
    original_destination_cid: bytes = b""


class Retries:
    """Mints and opens tokens. key: 32 bytes, shared by all workers. Times are monotonic seconds, as all workers see."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def __repr__(self) -> str:
        return "<Retries>"

    def mint(self, address: tuple[str, int], original_cid: bytes, retry_cid: bytes, now: float) -> bytes:
        """The token for a client at an address that will come back to `retry_cid`."""
        nonce = os.urandom(_NONCE_BYTES)
        plain = int(now * 1000).to_bytes(_MILLISECOND_BYTES, "big") + original_cid
        return _MARK + nonce + self._aead.encrypt(nonce, plain, _bound_to(address, retry_cid))

    def look(self, token: bytes, address: tuple[str, int], destination_cid: bytes, now: float) -> Proof:
        """What a token proves of whoever sent it from an address to a connection id."""
        if not token.startswith(_MARK):
            return Proof(Verdict.ABSENT)
        sealed = token[len(_MARK) :]
        try:
            plain = self._aead.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound_to(address, destination_cid)
            )
        except (InvalidTag, ValueError):  # ValueError: too short
            return Proof(Verdict.INVALID)
        age_s = now - int.from_bytes(plain[:_MILLISECOND_BYTES], "big") / 1000
        if age_s > TOKEN_LIFETIME_S:
            return Proof(Verdict.INVALID)
        return Proof(Verdict.VALID, plain[_MILLISECOND_BYTES:])


def retry_packet(initial: QuicHeader, retry_cid: bytes, token: bytes) -> bytes:
    """The Retry that answers a client's first packet."""
    assert initial.version is not None  # first_look lets long headers alone through
    return encode_quic_retry(
        version=initial.version,
        source_cid=retry_cid,
        destination_cid=initial.source_cid,
        original_destination_cid=initial.destination_cid,
        retry_token=token,
        unused=os.urandom(1)[0] & 0xF,
    )


def refusal(initial: QuicHeader, error: QuicErrorCode) -> bytes:
    """CONNECTION_CLOSE for a client's first packet, under the keys that its connection id gives (section 10.2.3)."""
    assert initial.version is not None
    pair = CryptoPair()
    pair.setup_initial(initial.destination_cid, is_client=False, version=initial.version)
    frame = Buffer(capacity=8)
    frame.push_uint_var(QuicFrameType.TRANSPORT_CLOSE)
    for number in (error, QuicFrameType.PADDING, 0):  # the frame that is to blame: none; the reason's length
        frame.push_uint_var(number)
    number_bytes = 2
    head = Buffer(capacity=64)
    head.push_uint8(encode_long_header_first_byte(initial.version, QuicPacketType.INITIAL, number_bytes - 1))
    head.push_uint32(initial.version)
    for cid in (initial.source_cid, initial.destination_cid):
        head.push_uint8(len(cid))
        head.push_bytes(cid)
    head.push_uint_var(0)  # no token
    head.push_uint16(0x4000 | number_bytes + len(frame.data) + pair.aead_tag_size)
    head.push_uint16(0)  # the packet's number
    return pair.encrypt_packet(head.data, frame.data, 0)


def _bound_to(address: tuple[str, int], cid: bytes) -> bytes:
    return f"{address[0]} {address[1]} ".encode() + cid
