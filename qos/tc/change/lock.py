# SPDX-License-Identifier: Apache-2.0
"""One change at a time: a file lock for each network namespace, waited for a few seconds, its holder named.

The lock is flock(2)'s: it ends with its process, however that dies, so that nobody ever has to remove one by hand.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qos.tc.change.ownership import give, make_folder

__all__ = ["LOCKS", "WAIT_S", "LockError", "lock_file", "lock_folder", "locked"]

LOCKS = Path("/run/inferlane")
"""Where root's locks lie: a reboot empties it, and other state directories share it."""
WAIT_S = 5.0
"""A thousand classes take a fraction of a second; who holds it longer drains a queue, or is stuck."""
_POLL_S = 0.05
_NAMESPACES = Path("/run/netns")
_OWN = Path("/proc/self/ns/net")


class LockError(Exception):
    """The lock cannot be had: one line that names the holder or the place, and the remedy."""


def lock_folder(state: Path) -> Path:
    """Where the namespaces' locks lie: in one place for all who can write there, else with their state."""
    return LOCKS if os.geteuid() == 0 or os.access(LOCKS, os.W_OK) else state


def lock_file(netns: str | None, folder: Path) -> Path:
    """The lock of a namespace, named by its inode: one namespace may have several names, or none."""
    try:
        inode = (_OWN if netns is None else _NAMESPACES / netns).stat().st_ino
    except OSError:
        raise LockError(f"no network namespace is named {netns}; `ip netns list` prints those there are") from None
    return folder / f"netns-{inode}.lock"


@contextmanager
def locked(
    files: Collection[Path],
    *,
    who: str,
    wait_s: float = WAIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold all of these; `who` is told to those who wait in vain."""
    give_up = clock() + wait_s
    with ExitStack() as held:
        for file in sorted(set(files)):  # everybody in one order, so that no two wait for each other
            descriptor = _opened(file)
            held.callback(os.close, descriptor)
            while not _taken(descriptor):
                if clock() >= give_up:
                    raise LockError(_busy(file, descriptor, wait_s))
                sleep(_POLL_S)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {who}".encode(), 0)
            held.callback(os.ftruncate, descriptor, 0)
        yield


def _opened(file: Path) -> int:
    try:
        make_folder(file.parent)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        give(descriptor, file.parent)
    except OSError as error:
        raise LockError(f"{error.filename or file}: {error.strerror}; the lock must be written there") from None
    return descriptor


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(file: Path, descriptor: int, waited_s: float) -> str:
    pid, _, who = os.pread(descriptor, 200, 0).decode(errors="replace").partition(" ")
    holder = f"{who} (process {pid})" if who else "another process"
    return (
        f"{holder} is changing traffic control here and holds {file}; waited {waited_s:g} s; try again when it is done"
    )
