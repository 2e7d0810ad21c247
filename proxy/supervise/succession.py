# SPDX-License-Identifier: Apache-2.0
"""The supervisor's own upgrade: it executes the program on disk in its place, with the same pid, children and sockets.

`python -P -m proxy.supervise.succession --fd N` goes on with the state in that file. With `--check` it only says
whether it could, and how it arranges a ledger; with `--ledger ROWS` it arranges one in that file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

import qos
from backends.ledger.segment import Ledger
from proxy.config.loading import ConfigError
from proxy.keeper import Handed as HandedKeeper
from proxy.supervise.channel import ChannelError
from proxy.supervise.edition import HandedEdition
from proxy.supervise.merging import HandedTotals
from proxy.supervise.rows import Rows, version
from proxy.supervise.sockets import HandedAddress
from proxy.supervise.upgrading import UpgradeError, UpgradeState

__all__ = ["State", "SuccessionError", "look", "main", "read_state", "succeed", "write_state"]

CHECK_S = 60.0
"""For the new program to say whether it can."""
PATIENCE_S = 60.0
"""For a moment at which everything can be handed over."""
_AGAIN_S = 0.2


class SuccessionError(Exception):
    """The program on disk cannot go on: one line for people."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes on. Unknown fields are left out, and new ones need a default: two versions read it."""

    state_dir: str
    keys: bytes
    editions: list[HandedEdition]
    sockets: dict[str, list[HandedAddress]]
    admin: int
    totals: HandedTotals
    standing: list[dict[str, Any]]
    upgrade: UpgradeState
    keeper: HandedKeeper | None = None


def write_state(state: State) -> int:
    """Into a file without a name, for another program. MessagePack: keys are bytes, and buckets may be infinite."""
    fd = os.memfd_create("inferlane-state", 0)
    with open(fd, "wb", closefd=False) as opened:
        opened.write(msgspec.msgpack.encode(state))
    return fd


def read_state(fd: int) -> State:
    """Out of it. Raises msgspec.MsgspecError: this program does not understand it."""
    size = os.fstat(fd).st_size
    return msgspec.msgpack.decode(os.pread(fd, size, 0), type=State)


async def look(state: State, count: int) -> Rows | None:
    """Ask the program on disk whether it can go on with this; rows of a ledger that it arranged for so many workers,
    where it knows another arrangement. Raises UpgradeError."""
    fd = write_state(state)
    try:
        told = await _ask("--check", fd)
    finally:
        os.close(fd)
    if count == 1 or told == str(version()):
        return None
    ledger = os.memfd_create("inferlane-ledger", os.MFD_CLOEXEC)
    await _ask("--ledger", str(2 * count), ledger)
    return Rows.written_by_others(count, 2 * count, ledger)


async def succeed(state: Callable[[], State | None], signals: Sequence[signal.Signals]) -> None:
    """Become the program on disk. state: None, or ChannelError, where it cannot be handed over just now.

    Returns, or raises SuccessionError, when this program has to go on.
    """
    until = monotonic() + PATIENCE_S
    while monotonic() < until:
        with suppress(ChannelError):
            await _try(state, signals)
        await asyncio.sleep(_AGAIN_S)
    raise SuccessionError(f"there was no moment within {PATIENCE_S:g} s to hand everything over")


async def _try(state: Callable[[], State | None], signals: Sequence[signal.Signals]) -> None:
    tried = state()
    if tried is None:
        return
    await look(tried, 1)
    # From here on signals wait for the new program: before it listens for them, they would end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        for _ in range(3):  # one that came before has its turn here
            await asyncio.sleep(0)
        last = state()
        if last is not None:
            _become(write_state(last))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _become(fd: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, _command("--fd", str(fd)), _environment())
    finally:
        os.close(fd)


async def _ask(*arguments: str | int) -> str:
    fd = int(arguments[-1])
    process = await asyncio.create_subprocess_exec(
        *_command(*map(str, arguments[:-1]), "--fd", str(fd)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=[fd],
        env=_environment(),
        process_group=0,
    )
    try:
        async with asyncio.timeout(CHECK_S):
            out, complaint = await process.communicate()
    except TimeoutError:
        raise UpgradeError(f"the program on disk did not answer within {CHECK_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = complaint.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise UpgradeError(f"the program on disk cannot go on with what runs here: {said[-1]}")
    return out.decode().strip()


def _command(*arguments: str) -> list[str]:
    # -P: never import from the directory that somebody happened to start us in.
    return [sys.executable, "-P", "-m", "proxy.supervise.succession", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(qos.__path__[0]).parent)}


def main() -> int:
    """The process."""
    from proxy.supervise import supervisor  # what goes on; and it uses this module, too

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the file")
    parser.add_argument("--check", action="store_true", help="only say whether it could go on")
    parser.add_argument("--ledger", type=int, default=0, metavar="ROWS", help="only arrange a ledger in the file")
    given = parser.parse_args()
    if given.ledger:
        Ledger.create(given.ledger, fd=os.dup(given.fd))
        return 0
    try:
        state = read_state(given.fd)
        if given.check:
            for each in state.editions:
                each.config()
            sys.stdout.write(f"{version()}\n")
            return 0
    except (msgspec.MsgspecError, ConfigError) as error:
        sys.stderr.write(f"{str(error).splitlines()[0]}\n")
        return 1
    os.close(given.fd)
    asyncio.run(supervisor.resume(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
