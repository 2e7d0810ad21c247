# SPDX-License-Identifier: Apache-2.0
"""The watcher of a change that waits for its confirmation: a process of its own, which undoes it at the deadline.

It is armed before the first step, says that it watches, and then needs nobody: not the command, not the gateway, not
the connection that the command was typed over. Where systemd runs, a transient timer of its holds the deadline; else
a process in a session of its own does. Run as `python -m qos.tc.change.watcher FOLDER ID`.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import qos
from qos.tc.change.ledger import Ledger, LedgerError, Pending, boot_clock
from qos.tc.change.lock import LOCKS, LockError, lock_file
from qos.tc.change.making import put_back_unconfirmed
from qos.tc.change.ownership import give
from qos.tc.change.site import ChangeError, Site
from qos.tc.errors import KernelError

__all__ = ["ArmError", "arm", "command", "main", "timer_command", "watch"]

READY = b"watching\n"
_ACKNOWLEDGED_S = 20.0
_POLL_S = 0.5  # so long at most one watches what is confirmed already
_TRIES = 60
_PAUSE_S = 1.0
_LARGEST_LOG = 256 * 1024
_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)


class ArmError(Exception):
    """No watcher watches: one line with what it said."""


def arm(ledger: Ledger, pending: Pending, *, locks: Path) -> None:
    """Have somebody undo this change at its deadline. When this returns, somebody does."""
    if _has_systemd():
        done = subprocess.run(
            timer_command(ledger, pending, locks=locks, now=boot_clock()),
            capture_output=True,
            text=True,
            check=False,
            timeout=_ACKNOWLEDGED_S,
        )
        if done.returncode == 0:
            return
    _start(ledger, pending, locks)


def command(ledger: Ledger, pending: Pending, *, locks: Path) -> list[str]:
    """What runs a watcher. -P: a stranger's module in the directory one happens to be in is not run as root."""
    folder = str(ledger.folder.absolute())
    return [sys.executable, "-P", "-m", "qos.tc.change.watcher", folder, pending.id, "--locks", str(locks.absolute())]


def timer_command(ledger: Ledger, pending: Pending, *, locks: Path, now: float) -> list[str]:
    """The same at the deadline, by systemd: no process waits, and no session's end stops it (systemd-run(1))."""
    left_s = max(0.0, (pending.deadline or 0.0) - now)
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        # A change that is armed again keeps its id; two units of one name cannot be.
        f"--unit=inferlane-qos-{pending.id}-{int((pending.deadline or 0.0) * 1000)}",
        f"--on-active={left_s:.3f}s",
        "--timer-property=AccuracySec=100ms",  # its default is a minute
        f"--setenv=PYTHONPATH={_packages()}",
        *command(ledger, pending, locks=locks),
    ]


def watch(
    ledger: Ledger,
    pending: Pending,
    *,
    put_back: Callable[[Pending], bool],
    clock: Callable[[], float] = boot_clock,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait for the deadline, then undo. False: it was confirmed, undone or replaced by then."""
    current: Pending | None = pending
    while current is not None and current.id == pending.id and current.deadline is not None:
        left_s = current.deadline - clock()
        if left_s <= 0:
            return put_back(current)
        sleep(min(left_s, _POLL_S))
        with suppress(LedgerError):  # a damaged book is no confirmation: what was read before still holds
            current = ledger.read(Pending)
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch one change; 0: nothing is left to do."""
    parser = argparse.ArgumentParser(prog="python -m qos.tc.change.watcher", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the ledger's folder")
    parser.add_argument("id", help="of the pending change")
    parser.add_argument("--locks", type=Path, default=LOCKS, help="where locks lie")
    parser.add_argument("--ready", type=int, metavar="FD", help="detach, and say there that it watches")
    given = parser.parse_args(arguments)
    ledger = Ledger(given.folder)
    if given.ready is not None and os.fork() != 0:
        return 0  # who started us has no child to wait for
    pending = ledger.read(Pending)
    if given.ready is not None:
        os.write(given.ready, READY)
        os.close(given.ready)
    if pending is None or pending.id != given.id:
        return 0
    site = Site(ledger=ledger, lock_of=partial(lock_file, folder=given.locks))
    return 0 if _watched(site, pending) else 1


def _watched(site: Site, pending: Pending) -> bool:
    """Whether it ended well; what may pass, such as a lock that somebody holds, is waited for."""
    for _ in range(_TRIES):
        try:
            done = watch(site.ledger, pending, put_back=lambda found: put_back_unconfirmed(site, found))
        except (KernelError, LockError) as error:  # it may be better soon
            _tell(f"change {pending.id}: {error}")
            time.sleep(_PAUSE_S)
        except (ChangeError, LedgerError) as error:
            _tell(f"change {pending.id}: {error}")
            return False
        else:
            _tell(f"change {pending.id}: {'put back' if done else 'confirmed, undone or replaced'}")
            return True
    return False


def _start(ledger: Ledger, pending: Pending, locks: Path) -> None:
    log = ledger.folder / "watcher.log"
    heard, said = os.pipe()
    try:
        with os.fdopen(_opened(log), "ab") as output:
            process = subprocess.Popen(
                [*command(ledger, pending, locks=locks), "--ready", str(said)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[said],
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": _packages()},
            )
        os.close(said)
        said = -1
        with process:
            if _heard(heard) != READY:
                process.kill()
                raise ArmError(f"no watcher could be started, so nothing was changed; {log} says why")
    except OSError as error:
        raise ArmError(f"no watcher could be started, so nothing was changed: {error}") from None
    finally:
        os.close(heard)
        if said >= 0:
            os.close(said)


def _opened(log: Path) -> int:
    """The folder may be another user's, who must not lead root elsewhere by a link."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if os.fstat(descriptor).st_size > _LARGEST_LOG:
        os.ftruncate(descriptor, 0)
    give(descriptor, log.parent)
    return descriptor


def _heard(descriptor: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], _ACKNOWLEDGED_S)
    return os.read(descriptor, len(READY)) if ready else b""


def _has_systemd() -> bool:
    """Whether a unit of systemd's would live where we do: its network namespace is that of process 1."""
    try:
        here, there = os.stat("/proc/self/ns/net"), os.stat("/proc/1/ns/net")
    except OSError:
        return False
    return _SYSTEMD.is_dir() and os.geteuid() == 0 and here.st_ino == there.st_ino


def _packages() -> str:
    return str(Path(qos.__file__).parent.parent)


def _tell(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
