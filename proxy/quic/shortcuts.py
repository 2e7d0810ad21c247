# SPDX-License-Identifier: Apache-2.0
"""Functions of aioquic that give the same answer for less, put in the place of its own when this module is imported.

They are module globals that aioquic calls by name, so no subclass reaches them. Each is held to the answers of the
original in tests/unit/proxy/quic/test_shortcuts.py. A handshake made 33 frozen sets of the same four kinds, 7 KiB of
every connection, and 36 key derivations, each of which had OpenSSL look HMAC up by name: that took longer than to hash.
The context managers of TLS's blocks were generators, 80 of them a handshake.
"""

from __future__ import annotations

import hashlib
from functools import cache
from types import TracebackType

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection, crypto
from cryptography.hazmat.primitives import hashes

__all__ = ["PulledBlock", "PushedBlock", "epochs", "hkdf_expand_label", "original_epochs", "original_hkdf_expand_label"]

original_epochs = connection.EPOCHS
original_hkdf_expand_label = tls.hkdf_expand_label
epochs = cache(original_epochs)
_HASHES = {"sha256": (hashlib.sha256, 64, 32), "sha384": (hashlib.sha384, 128, 48)}
"""Function, block and digest size, by the name that cryptography has for it."""
_INNER, _OUTER = bytes(each ^ 0x36 for each in range(256)), bytes(each ^ 0x5C for each in range(256))


@cache
def _info(label: bytes, length: int) -> bytes:
    """RFC 8446 section 7.1, up to the context."""
    full = b"tls13 " + label
    return length.to_bytes(2, "big") + bytes((len(full),)) + full


def hkdf_expand_label(
    algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, hash_value: bytes, length: int
) -> bytes:
    """HKDF-Expand-Label in one block, which is all that TLS 1.3 and QUIC take of it."""
    digest, block, size = _HASHES.get(algorithm.name, (None, 0, 0))
    if digest is None or length > size or len(secret) > block:
        return original_hkdf_expand_label(algorithm, secret, label, hash_value, length)
    message = b"%b%c%b\x01" % (_info(label, length), len(hash_value), hash_value)
    key = secret.ljust(block, b"\x00")  # HMAC (RFC 2104)
    return digest(key.translate(_OUTER) + digest(key.translate(_INNER) + message).digest()).digest()[:length]


class PulledBlock:
    """tls.pull_block: what follows a length of `capacity` bytes has to be read to its end."""

    __slots__ = ("_buffer", "_end", "_length")

    def __init__(self, buf: Buffer, capacity: int) -> None:
        self._buffer = buf
        self._length = int.from_bytes(buf.pull_bytes(capacity), "big")
        self._end = buf.tell() + self._length

    def __enter__(self) -> int:
        return self._length

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None and self._buffer.tell() != self._end:
            raise tls.AlertDecodeError("extra bytes at the end of a block")


class PushedBlock:
    """tls.push_block: the length of what is written meanwhile goes before it, in `capacity` bytes."""

    __slots__ = ("_buffer", "_capacity", "_start")

    def __init__(self, buf: Buffer, capacity: int) -> None:
        self._buffer, self._capacity = buf, capacity
        self._start = buf.tell() + capacity
        buf.seek(self._start)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            return
        buffer, end = self._buffer, self._buffer.tell()
        buffer.seek(self._start - self._capacity)
        buffer.push_bytes((end - self._start).to_bytes(self._capacity, "big"))
        buffer.seek(end)


def _install() -> None:
    connection.EPOCHS = epochs
    tls.pull_block = PulledBlock  # type: ignore[assignment]
    tls.push_block = PushedBlock  # type: ignore[assignment]
    tls.hkdf_expand_label = hkdf_expand_label
    crypto.hkdf_expand_label = hkdf_expand_label  # type: ignore[attr-defined]
    tls.Epoch.__hash__ = object.__hash__  # type: ignore[method-assign]  # members are single, and compare so


_install()
