# SPDX-License-Identifier: Apache-2.0
"""The secrets that all workers of a gateway share, and which of them outlive it.

A client that was steered to another worker, or that comes back after a restart, must find its proofs accepted: else
every restart would cost its clients an idle timeout, or a full handshake.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

__all__ = ["KEY_BYTES", "Keys"]

KEY_BYTES = 32
_FILE = "quic.keys"
_TICKET_LIFE = timedelta(days=7)
"""A ticket key's age from which a start makes a new one (RFC 9325 section 3.4)."""
_READABLE_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Keys:
    """32 random bytes for each job. None is ever shown, not even by repr."""

    cookie: bytes = field(repr=False)
    """Address cookies of inference datagrams; they live two minutes."""
    retry: bytes = field(repr=False)
    """Retry tokens; they live half a minute."""
    reset: bytes = field(repr=False)
    """Stateless reset tokens and the check of connection ids: a client may hold them for as long as it lives."""
    ticket: bytes = field(repr=False)
    """Session tickets; they live a day."""

    def __post_init__(self) -> None:
        if any(len(key) != KEY_BYTES for key in (self.cookie, self.retry, self.reset, self.ticket)):
            raise ValueError(f"each key has {KEY_BYTES} bytes")

    @classmethod
    def fresh(cls) -> Keys:
        """All of them new."""
        return cls(*(secrets.token_bytes(KEY_BYTES) for _ in range(4)))

    @classmethod
    def load(cls, state_dir: Path) -> Keys:
        """Reset and ticket key as the last run left them, the others fresh. Raises OSError: cannot be read or kept.

        A file that others can read, or that is damaged, holds no secrets: it is made anew.
        """
        fresh = cls.fresh()
        kept = _read(state_dir / _FILE)
        reset = fresh.reset if kept is None else kept.reset
        if kept is not None and datetime.now(UTC) - kept.written < _TICKET_LIFE:
            return cls(fresh.cookie, fresh.retry, reset, kept.ticket)
        _write(state_dir / _FILE, reset + fresh.ticket)
        return cls(fresh.cookie, fresh.retry, reset, fresh.ticket)

    @classmethod
    def from_bytes(cls, data: bytes) -> Keys:
        """What `to_bytes` gave. Raises ValueError for anything else."""
        if len(data) != 4 * KEY_BYTES:
            raise ValueError(f"{len(data)} bytes are not {4 * KEY_BYTES}")
        return cls(*(data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)))

    def to_bytes(self) -> bytes:
        """For a worker, over a channel that nobody else reads."""
        return self.cookie + self.retry + self.reset + self.ticket

    def at(self, address: tuple[str, int]) -> Keys:
        """As one socket has them: its resets end connections of no other socket.

        Whoever sees an id of somebody's connection can have another socket of ours tell its token, for there nobody
        has the id, and end the connection with it (RFC 9000 section 21.11).
        """
        return replace(self, reset=hmac.digest(self.reset, "{} {}".format(*address).encode(), "sha256"))

    @property
    def steering(self) -> bytes:
        """The key of the check byte in connection ids. Derived, so that ids of the last run still pass."""
        return hmac.digest(self.reset, b"connection ids", "sha256")


class _Kept(NamedTuple):
    """What the last run left, and when it wrote it."""

    reset: bytes
    ticket: bytes
    written: datetime


def _read(file: Path) -> _Kept | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as opened:
        about = os.fstat(descriptor)
        data = opened.read(2 * KEY_BYTES + 1)
    private = not about.st_mode & _READABLE_BY_OTHERS and about.st_uid == os.geteuid()
    if not private or len(data) != 2 * KEY_BYTES:
        return None
    return _Kept(data[:KEY_BYTES], data[KEY_BYTES:], datetime.fromtimestamp(about.st_mtime, UTC))


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all: the name is given to a file that is already written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
        draft.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
