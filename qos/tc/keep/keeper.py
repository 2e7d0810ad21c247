# SPDX-License-Identifier: Apache-2.0
"""The keeper of traffic control: a process beside the gateway that keeps what was confirmed, and answers for it.

`python -m qos.tc.keep.keeper --fd N --state-dir DIR`. It has the capabilities that the gateway gives up, speaks no
network protocol, and takes from the gateway four words (messages). It lives as long as its end of the socket pair does.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from qos.tc.change.ledger import Ledger
from qos.tc.change.lock import LOCKS, lock_file
from qos.tc.change.site import Site
from qos.tc.errors import KernelError
from qos.tc.keep.company import Company
from qos.tc.keep.keeping import Timetable
from qos.tc.keep.messages import (
    LONGEST_REPORT,
    LONGEST_REQUEST,
    Refusal,
    Reload,
    Report,
    Statistics,
    Stop,
    decode_request,
    encode,
)
from qos.tc.keep.vigil import Vigil
from qos.tc.kernel.monitor import Monitor

__all__ = ["Keeper", "main"]

_LONGEST_SLEEP_S = 30.0
_LAST_WORDS_S = 1.0
_READ = 4096


class Keeper:
    """The loop: sockets and clocks in, words out. What it thinks is `Vigil`'s."""

    def __init__(self, sock: socket.socket, vigil: Vigil, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sock = sock
        self._vigil = vigil
        self._clock = clock
        self._timetable = Timetable(clock())
        self._monitors: dict[str, Monitor] = {}
        self._received = b""
        self._skipping = False
        self._unsent = bytearray()
        self._stop: Stop | None = None
        self._gone = False
        sock.setblocking(False)

    def __repr__(self) -> str:
        return f"<Keeper {len(self._monitors)} watched, {self._timetable!r}>"

    def run(self) -> int:
        """Until the gateway says stop, or is no more."""
        try:
            while self._stop is None and not self._gone:
                self._watch()
                now = self._clock()
                if now >= self._timetable.next():
                    again_s, rest_s = self._vigil.look(now)
                    self._timetable.looked(self._clock(), again_s=again_s, rest_s=rest_s)
                self._say(self._vigil.reports())
                self._wait(max(0.0, self._timetable.next() - self._clock()))
            self._say([self._vigil.end(), *self._vigil.reports()])
            self._flush_last()
        finally:
            for each in self._monitors.values():
                each.close()
            self._sock.close()
        return 0

    def _wait(self, longest_s: float) -> None:
        """Until somebody says something, or it is time to look."""
        watched = [self._sock.fileno(), *(each.fileno() for each in self._monitors.values())]
        writing = [self._sock.fileno()] if self._unsent else []
        readable, writable, _ = select.select(watched, writing, [], min(longest_s, _LONGEST_SLEEP_S))
        if writable:
            self._send()
        if self._sock.fileno() in readable:
            self._hear()
        for identity, monitor in list(self._monitors.items()):
            if monitor.fileno() in readable:
                self._touched(identity, monitor)

    def _watch(self) -> None:
        """A monitor for each namespace there is; one that was made anew under its name is another."""
        wanted = {each.identity: each.netns for each in self._vigil.upkeeps}
        wanted.pop("", None)
        for identity in self._monitors.keys() - wanted.keys():
            self._monitors.pop(identity).close()
        for identity in wanted.keys() - self._monitors.keys():
            try:
                self._monitors[identity] = Monitor(wanted[identity])
            except KernelError:
                continue  # looked at every so often all the same
            self._timetable.at_once(self._clock())  # what happened before it watched, nobody told

    def _touched(self, identity: str, monitor: Monitor) -> None:
        try:
            if monitor.read():
                self._timetable.touched(self._clock())
        except KernelError:
            self._monitors.pop(identity).close()  # made anew before the next wait

    def _hear(self) -> None:
        try:
            received = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        self._gone = not received
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            self._answer(line)
        if len(self._received) > LONGEST_REQUEST:
            self._received, self._skipping = b"", True

    def _answer(self, line: bytes) -> None:
        if self._skipping or len(line) > LONGEST_REQUEST:
            self._skipping = False
            self._say([Refusal(detail=f"a request longer than {LONGEST_REQUEST} bytes is none")])
            return
        try:
            request = decode_request(line)
        except ValueError as error:
            self._say([Refusal(detail=str(error))])
            return
        match request:
            case Statistics():
                self._say([self._vigil.readings()])
            case Stop():
                self._stop = request
            case Reload():
                self._timetable.at_once(self._clock())
                self._say([self._vigil.standing()])
            case _:
                self._say([self._vigil.standing()])

    def _say(self, reports: Sequence[Report]) -> None:
        """A gateway that does not listen loses lines; nobody waits for it here."""
        for each in reports:
            line = encode(each)
            if len(self._unsent) + len(line) <= 2 * LONGEST_REPORT:
                self._unsent += line
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()
            self._gone = True

    def _flush_last(self) -> None:
        give_up = self._clock() + _LAST_WORDS_S
        while self._unsent and not self._gone and self._clock() < give_up:
            select.select([], [self._sock.fileno()], [], give_up - self._clock())
            self._send()


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep until the gateway is no more."""
    parser = argparse.ArgumentParser(prog="python -m qos.tc.keep.keeper", description=__doc__.splitlines()[0])
    parser.add_argument("--fd", type=int, required=True, help="of a socket pair, inherited from the gateway")
    parser.add_argument("--state-dir", type=Path, required=True, help="where the books lie")
    given = parser.parse_args(arguments)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal or a supervisor signals the whole group; the gateway drains first, and this ends with it.
        signal.signal(each, signal.SIG_IGN)
    sock = socket.socket(fileno=given.fd)
    ledger = Ledger(given.state_dir.absolute() / "qos")
    # Not root, but the owner of the unit's RuntimeDirectory=: root's commands take the same locks.
    locks = LOCKS if os.geteuid() == 0 or os.access(LOCKS, os.W_OK) else ledger.folder
    site = Site(ledger=ledger, lock_of=partial(lock_file, folder=locks))
    company = Company(ledger.folder / "keepers")
    return Keeper(sock, Vigil(site, alone=company.alone)).run()


if __name__ == "__main__":
    sys.exit(main())
