# SPDX-License-Identifier: Apache-2.0
"""The connection ids that we issue: which worker has the connection is written in them. Pure.

    byte   0             1        2        3 ... 9
         +------+------+--------+--------+------------------+
         | vers | gen  | place  | check  | 7 random bytes   |
         +------+------+--------+--------+------------------+
           4 bit  4 bit

vers   1: this layout. It is private: nobody but the gateway, and the program that it gives the kernel, reads it.
gen    the generation of workers, modulo 16: for people who read a capture.
place  the worker's socket in its SO_REUSEPORT group, which is where the kernel delivers (proxy/steering/).
check  a keyed mix of bytes 0 and 1. An id that a client chose passes for ours once in 4,096 times.

The check is computed by a classic BPF program for every packet, so it is two instructions and no cipher. Whoever forges
an id reaches a worker of his choice, and nothing more: the packet still has to decrypt there.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

__all__ = ["CID_LENGTH", "GENERATIONS", "PLACES", "RANDOM_BYTES", "VERSION", "ConnectionIds", "Mix", "Origin"]

CID_LENGTH = 10
RANDOM_BYTES = 7
VERSION = 1
GENERATIONS = 16
PLACES = 256
_MASK_32 = 0xFFFFFFFF


class Origin(NamedTuple):
    """Who issued an id."""

    version: int
    generation: int
    place: int


class Mix(NamedTuple):
    """What a key makes of the check and of the hash over places; every number as the kernel's program uses it."""

    mask: int
    """16 bits."""
    multiplier: int
    """32 bits, odd."""
    first: int
    """Of the hash: what the first word of an id is multiplied with; 32 bits, odd."""
    second: int
    """And the sum of both."""

    @classmethod
    def of(cls, key: bytes) -> Mix:
        """From a key of any length."""
        digest = hashlib.sha256(b"steering" + key).digest()
        words = [int.from_bytes(digest[at : at + 4], "big") for at in range(0, 16, 4)]
        return cls(words[0] & 0xFFFF, words[1] | 1, words[2] | 1, words[3] | 1)

    def check(self, head: int) -> int:
        """The check byte for bytes 0 and 1."""
        return ((head ^ self.mask) * self.multiplier & _MASK_32) >> 24

    def spread(self, first: int, second: int) -> int:
        """16 bits from two words of an id that is not ours: the same for every packet of a handshake."""
        return ((first * self.first + second & _MASK_32) * self.second & _MASK_32) >> 16


class ConnectionIds:
    """Issues the ids of one worker, and reads those of all. key: shared by all workers (`Keys.steering`)."""

    def __init__(self, place: int = 0, generation: int = 0, key: bytes = b"") -> None:
        if not 0 <= place < PLACES:
            raise ValueError(f"place {place} is not in 0..{PLACES - 1}")
        self.place = place
        self._mix = Mix.of(key)
        head = (VERSION << 4 | generation % GENERATIONS) << 8 | place
        self._head = head.to_bytes(2, "big") + bytes([self._mix.check(head)])

    def __repr__(self) -> str:
        return f"<ConnectionIds of place {self.place}, generation {self._head[0] & 0xF}>"

    def issue(self, random: bytes) -> bytes:
        """A new id. random: 7 unpredictable bytes, or nobody could keep observers from linking ids."""
        if len(random) != RANDOM_BYTES:
            raise ValueError(f"{len(random)} random bytes, not {RANDOM_BYTES}")
        return self._head + random

    def read(self, cid: bytes) -> Origin | None:
        """Who issued an id; None: nobody of us, or of an older layout."""
        if len(cid) != CID_LENGTH or cid[0] >> 4 != VERSION:
            return None
        if self._mix.check(cid[0] << 8 | cid[1]) != cid[2]:
            return None
        return Origin(VERSION, cid[0] & 0xF, cid[1])
