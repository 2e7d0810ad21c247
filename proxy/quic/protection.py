# SPDX-License-Identifier: Apache-2.0
"""Protection of short-header packets (RFC 9001 section 5), with one call of the cipher a packet and no copies between.

It works on the keys that aioquic holds, at the moment of the call, so a key update by either side needs nothing here:
what is not of the current phase opens as None and goes through aioquic's own code.
"""

from __future__ import annotations

from aioquic.quic.crypto import CryptoContext
from cryptography.exceptions import InvalidTag

__all__ = ["PACKET_OVERHEAD", "Opened", "open_packet", "seal_packet"]

PACKET_OVERHEAD = 1 + 2 + 16
"""First byte, packet number and tag; the peer's connection id comes on top."""
_RESERVED = 0x18
_KEY_PHASE = 0x04
_ONE_BYTE = [bytes((value,)) for value in range(256)]

Opened = tuple[int, int, bytes]
"""First byte, packet number, payload."""


def open_packet(keys: CryptoContext, packet: bytes, cid_end: int, expected: int) -> Opened | None:
    """A short-header packet whose connection id ends at `cid_end`. None: another key phase, reserved bits, too short,
    or not authentic, which is for aioquic to tell apart."""
    protection, cipher = keys.hp, keys.aead
    sample = packet[cid_end + 4 : cid_end + 20]
    if protection is None or cipher is None or len(sample) < 16:
        return None
    mask = protection._mask(sample) if protection._is_chacha20 else protection._encryptor.update(sample)
    first = packet[0] ^ (mask[0] & 0x1F)
    if first & _RESERVED or (first & _KEY_PHASE) >> 2 != keys.key_phase:
        return None
    size = (first & 0x03) + 1
    begin = cid_end + size
    if size == 2:  # nearly always
        truncated = (packet[cid_end] ^ mask[1]) << 8 | packet[cid_end + 1] ^ mask[2]
    else:
        truncated = int.from_bytes(packet[cid_end:begin], "big") ^ int.from_bytes(mask[1 : 1 + size], "big")
    header = b"".join((_ONE_BYTE[first], packet[1:cid_end], truncated.to_bytes(size, "big")))
    number = _whole_number(truncated, 8 * size, expected)
    try:
        plain = cipher._aead.decrypt((cipher._iv ^ number).to_bytes(12, "big"), packet[begin:], header)
    except (InvalidTag, OverflowError):
        return None
    return first, number, plain


def seal_packet(keys: CryptoContext, first: int, cid: bytes, number: int, plain: bytes) -> bytes:
    """A short-header packet with a packet number of two bytes, as aioquic writes it."""
    protection, cipher = keys.hp, keys.aead
    assert protection is not None
    assert cipher is not None
    short = number & 0xFFFF
    header = b"".join((_ONE_BYTE[first], cid, short.to_bytes(2, "big")))
    sealed = cipher._aead.encrypt((cipher._iv ^ number).to_bytes(12, "big"), plain, header)
    sample = sealed[2:18]
    mask = protection._mask(sample) if protection._is_chacha20 else protection._encryptor.update(sample)
    hidden = short ^ (mask[1] << 8 | mask[2])
    return b"".join((_ONE_BYTE[first ^ (mask[0] & 0x1F)], cid, hidden.to_bytes(2, "big"), sealed))


def _whole_number(truncated: int, bits: int, expected: int) -> int:
    """RFC 9000 appendix A.3."""
    window = 1 << bits
    half = window // 2
    candidate = (expected & ~(window - 1)) | truncated
    if candidate <= expected - half and candidate < (1 << 62) - window:
        return candidate + window
    if candidate > expected + half and candidate >= window:
        return candidate - window
    return candidate
