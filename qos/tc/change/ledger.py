# SPDX-License-Identifier: Apache-2.0
"""The books of traffic control: what is confirmed, what waits to be, what was there before us, what was put back.

Each is one JSON file that is whole or absent, whenever the machine stops: written beside, synced, renamed, and the
folder synced. Deadlines are instants of CLOCK_BOOTTIME, which counts while the machine sleeps, and mean something only
together with the boot they were set in.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from qos.tc.change.ownership import give, make_folder
from qos.tc.policy import LinkPolicy
from qos.tc.state import Filter, NetworkState, Qdisc, TcClass

__all__ = [
    "Baseline",
    "Confirmed",
    "DeviceBaseline",
    "Earlier",
    "LastRollback",
    "Ledger",
    "LedgerError",
    "Pending",
    "boot_clock",
    "boot_id",
]

FORMAT = 1
"""Of these files. A reader refuses what it does not know, and touches nothing."""
_LARGEST = 64 * 2**20  # a thousand classes on each of a hundred devices are less


class LedgerError(Exception):
    """A file of the state cannot be read or written: one line that names it and the remedy."""


class Earlier(msgspec.Struct, frozen=True, kw_only=True):
    """What stood before a confirmed policy, for `rollback`."""

    id: str | None
    policy: LinkPolicy | None
    """None: nothing of ours."""


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """The policy that stands: `run` applies it, and a reboot comes back to it."""

    format: int = FORMAT
    id: str
    policy: LinkPolicy
    programs: dict[str, bytes]
    """The classifiers it was applied with, by name: the way back from a later change needs them."""
    earlier: Earlier | None = None
    """None: `rollback` has nowhere to go."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A change on its way: written before the first step, gone when it stands or is undone."""

    format: int = FORMAT
    id: str
    policy: LinkPolicy
    previous: str | None
    """Id of the confirmed policy that it follows."""
    snapshots: tuple[NetworkState, ...]
    """What each namespace was before the first step."""
    programs: dict[str, bytes]
    """Classifiers of both states, by name."""
    classifiers: tuple[str, ...]
    """Names of those that the new state needs."""
    boot_id: str
    deadline: float | None
    """Seconds of `boot_clock`; None: it needs no confirmation."""
    confirm_s: float | None
    applier: int
    """Process id, for people."""
    done: bool = False
    """Whether every step was made and read back. Not so, and nobody holds the lock: the applier died."""


class DeviceBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """What one device had before we first touched it."""

    netns: str | None
    device: str
    index: int
    """A device that was made anew has another."""
    clsact: bool
    gso_max_size: int | None
    """None: not known, or never lowered."""
    root: Qdisc | None
    """Somebody's root qdisc that we adopted."""
    qdiscs: tuple[Qdisc, ...] = ()
    """What hung below it."""
    classes: tuple[TcClass, ...] = ()
    filters: tuple[Filter, ...] = ()


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What was there before us, so that `release` gives precisely that back."""

    format: int = FORMAT
    boot_id: str
    devices: tuple[DeviceBaseline, ...]


class LastRollback(msgspec.Struct, frozen=True, kw_only=True):
    """What was undone while nobody looked, told by every command until the next change stands."""

    format: int = FORMAT
    id: str
    at: str
    """Wall clock, for people."""
    why: str
    failure: str | None
    """None: everything is as it was before."""


Record = Confirmed | Pending | Baseline | LastRollback
R = TypeVar("R", Confirmed, Pending, Baseline, LastRollback)
_FILES: dict[type[Record], str] = {
    Confirmed: "confirmed.json",
    Pending: "pending.json",
    Baseline: "baseline.json",
    LastRollback: "last_rollback.json",
}


class _Head(msgspec.Struct, frozen=True):
    format: int


class Ledger:
    """The folder that holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"<Ledger {self.folder}>"

    @property
    def lock(self) -> Path:
        """Held by whoever changes what the books say."""
        return self.folder / "lock"

    def file(self, kind: type[Record]) -> Path:
        """Where records of this kind lie."""
        return self.folder / _FILES[kind]

    def read(self, kind: type[R]) -> R | None:
        """The record, or None where there is none. LedgerError where it cannot be understood."""
        file = self.file(kind)
        try:
            with file.open("rb") as opened:
                content = opened.read(_LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(
                f"{file}: cannot be read: {error.strerror}; run as its owner, or use --state-dir"
            ) from None
        return _understood(file, content, kind)

    def write(self, record: Record) -> None:
        """Replace the record of this kind; it is on the disk when this returns."""
        file = self.file(type(record))
        try:
            make_folder(self.folder)
            _replace(file, msgspec.json.encode(record))
        except OSError as error:
            raise LedgerError(
                f"{error.filename or file}: cannot be written: {error.strerror}; "
                "give a directory that can be written (--state-dir)"
            ) from None

    def remove(self, kind: type[Record]) -> None:
        """Forget the record of this kind."""
        file = self.file(kind)
        try:
            file.unlink(missing_ok=True)
            if self.folder.is_dir():
                _sync(self.folder)
        except OSError as error:
            raise LedgerError(f"{file}: cannot be removed: {error.strerror}; remove it by hand") from None


def boot_clock() -> float:
    """Seconds since this machine started, with the time it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which start of this machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _understood(file: Path, content: bytes, kind: type[R]) -> R:
    remedy = "the kernel was not touched; move the file away, and `inferlane qos plan CONF` shows what differs"
    try:
        found = msgspec.json.decode(content, type=_Head).format
        if found != FORMAT:
            raise LedgerError(
                f"{file}: has format {found}, this inferlane reads {FORMAT}; use the one that wrote it, or {remedy}"
            )
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise LedgerError(f"{file}: damaged ({error}); {remedy}") from None


def _replace(file: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            give(descriptor, file.parent)
            os.fsync(descriptor)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _sync(file.parent)


def _sync(folder: Path) -> None:
    """Without this a rename may be lost with the power (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
