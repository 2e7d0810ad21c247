# SPDX-License-Identifier: Apache-2.0
"""The gateway's side of traffic control: a helper process keeps what was confirmed, and here is what it said last.

It is started before this process gives up its capabilities, and cannot be started again after: where it dies, packets
keep their marks, the kernel keeps what it has, and the log and a metric say that nobody watches. No request waits.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

import qos
from proxy.privileges import Capability, effective
from proxy.telemetry.link_metrics import LinksSeen
from qos.tc.keep.messages import (
    LONGEST_REPORT,
    Ended,
    LogLine,
    Readings,
    Refusal,
    Reload,
    Report,
    Request,
    Standing,
    Statistics,
    Stop,
    decode_report,
    encode,
)
from qos.tc.policy import LinkPolicy

__all__ = ["Handed", "Keeper", "spawn"]

REFRESH_S = 5.0
"""How old the counters of a scrape may be; Prometheus asks every 15 s at most."""
SILENT_S = 60.0
"""Draining queues and loading kernel modules take seconds; whoever says nothing for longer is stuck."""
_READ = 64 * 1024
STOP_S = 15.0
"""For releasing everything, at the end."""
_UNATTENDED = "traffic_control_unattended"
_REMEDY = "what the kernel has stays as it is; restart the gateway, for it has no right to start the helper again"
_log = structlog.get_logger("inferlane.traffic_control")


def spawn(policy: LinkPolicy, state_dir: Path) -> Keeper | None:
    """Start the helper, as the first thing a gateway with interfaces does; None where nobody needs one."""
    if not policy.interfaces:
        return None
    if Capability.NET_ADMIN not in effective():
        return Keeper(policy, None, None, why=f"CAP_NET_ADMIN is missing; {_RIGHTS}")
    ours, its = socket.socketpair()
    try:
        process = subprocess.Popen(
            # -P: never import from the directory that somebody happened to start us in.
            [
                sys.executable,
                "-P",
                "-m",
                "qos.tc.keep.keeper",
                "--fd",
                str(its.fileno()),
                "--state-dir",
                str(state_dir),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            env={**os.environ, "PYTHONPATH": str(Path(qos.__path__[0]).parent)},
        )
    except OSError as error:
        ours.close()
        return Keeper(policy, None, None, why=f"the helper could not be started: {error}")
    finally:
        its.close()
    return Keeper(policy, process, ours)


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What another program in this process needs to go on with the helper. pid: None where there is none, and `why`."""

    pid: int | None = None
    fd: int | None = None
    held: bytes = b""
    why: str = ""


class _Child:
    """A process that this one has started when it ran another program."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("the helper", timeout or 0.0)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Keeper:
    """The helper, from this side. process: None where there is none, and `why`."""

    def __init__(
        self,
        policy: LinkPolicy,
        process: subprocess.Popen[bytes] | _Child | None,
        sock: socket.socket | None,
        *,
        why: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._why = why
        self._policy = policy
        self._process = process
        self._sock = sock
        self._clock = clock
        self._show: Callable[[LinksSeen], None] = lambda seen: None
        self._writer: asyncio.StreamWriter | None = None
        self._held = b""
        """The beginning of a line of the helper's."""
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = clock()
        self._readings = Readings(links=(), repairs=0)
        self._standing: Standing | None = None
        self._attended = False
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Keeper {'attended' if self._attended else 'unattended'}>"

    async def start(self, show: Callable[[LinksSeen], None]) -> None:
        """Listen to the helper; `show` gets what it reads."""
        self._show = show
        if self._process is None or self._sock is None:
            _log.warning(_UNATTENDED, detail=f"packets get marks and no more: {self._why}")
            self._tell()
            return
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
        self._heard = self._clock()
        self._attended = True
        self._tasks = [asyncio.create_task(self._listen(reader)), asyncio.create_task(self._refresh())]
        self._tell()

    def handed(self) -> Handed:
        """For another program in this process, whose child the helper stays."""
        if self._process is None or self._writer is None or self._writer.is_closing():
            return Handed(why=self._why or f"the helper has ended; {_REMEDY}")
        sock: socket.socket = self._writer.get_extra_info("socket")
        os.set_inheritable(sock.fileno(), True)
        return Handed(pid=self._process.pid, fd=sock.fileno(), held=self._held)

    @classmethod
    def adopt(cls, handed: Handed, policy: LinkPolicy) -> Keeper:
        """Go on with the helper that another program in this process has started; `start` follows."""
        if handed.pid is None or handed.fd is None:
            return cls(policy, None, None, why=handed.why)
        os.set_inheritable(handed.fd, False)
        kept = cls(policy, _Child(handed.pid), socket.socket(fileno=handed.fd))
        kept._held = handed.held
        return kept

    def use_policy(self, policy: LinkPolicy) -> None:
        """The config was read again."""
        self._policy = policy
        self._ask(Reload())
        self._compare()

    async def close(self) -> None:
        """Have it keep or release what it made, and end; after a while without its leave."""
        self._stopping = True
        if self._writer is None:
            if self._sock is not None:  # start() was never reached
                self._sock.close()
        else:
            self._ask(Stop())
            await asyncio.wait(self._tasks[:1], timeout=STOP_S)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        if self._process is not None:
            await self._reap(self._process)

    async def _reap(self, process: subprocess.Popen[bytes] | _Child) -> int:
        """Its exit code. With its socket closed it ends by itself."""
        try:
            return await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            _log.error("keeper_killed", detail=f"it did not end within {STOP_S:g} s")
            process.kill()
            return await asyncio.to_thread(process.wait)

    def _ask(self, request: Request) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(request))

    async def _refresh(self) -> None:
        while True:
            self._ask(Statistics())
            await asyncio.sleep(REFRESH_S)
            self._listened()

    def _listened(self) -> None:
        silent_s = self._clock() - self._heard
        if self._attended and silent_s > SILENT_S:
            self._attended = False
            _log.error(_UNATTENDED, detail=f"the helper has said nothing for {silent_s:.0f} s")
            self._tell()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(_READ):
                *lines, self._held = (self._held + data).split(b"\n")
                for line in lines:
                    self._hear(decode_report(line))
                if len(self._held) > LONGEST_REPORT:
                    raise ValueError(f"a line of more than {LONGEST_REPORT} bytes")
            why = "the helper ended"
        except (OSError, ValueError) as error:  # ValueError: a line that is too long, or no report
            why = f"the helper cannot be understood: {error}"
        self._attended = False
        if not self._stopping and self._process is not None:
            assert self._writer is not None
            self._writer.close()
            why = f"{why} with exit code {await self._reap(self._process)}"
            _log.error(_UNATTENDED, detail=f"{why}; {_REMEDY}")
        self._tell()

    def _hear(self, report: Report) -> None:
        self._heard = self._clock()
        if not self._attended:
            self._attended = True
            _log.info("traffic_control_attended", detail="the helper speaks again")
        match report:
            case Readings():
                self._readings = report
                self._tell()
            case Standing():
                changed, self._standing = report.id != getattr(self._standing, "id", ""), report
                if changed:
                    self._compare()
                self._ask(Statistics())  # something is made or gone: show it now
            case LogLine():
                where = {"interface": report.interface or None, "netns": report.netns, "detail": report.detail or None}
                _log.log(_LEVELS[report.level], report.name, **{key: each for key, each in where.items() if each})
            case Refusal():
                _log.error("keeper_refused", detail=report.detail)
            case Ended():
                _log.info("traffic_control_ended", released=report.released, failure=report.failure or None)

    def _compare(self) -> None:
        """What was confirmed is what holds; a config that says otherwise waits, and is told so."""
        if self._standing is None:
            return
        confirmed = self._standing.id
        if confirmed is None:
            detail = "no policy is confirmed, so packets get marks and no more; `inferlane qos apply` makes one"
            _log.warning("traffic_control_not_confirmed", detail=detail)
        elif self._standing.digest != self._policy.digest:
            detail = (
                f"the config's traffic control differs from what was confirmed ({confirmed}); "
                "it waits for inferlane qos apply"
            )
            _log.warning("traffic_control_differs", confirmed=confirmed, detail=detail)
        else:
            links = [each.interface for each in self._standing.links if each.in_force]
            _log.info("traffic_control_kept", confirmed=confirmed, in_force=links)

    def _tell(self) -> None:
        self._show(LinksSeen(attended=self._attended, repairs=self._readings.repairs, links=self._readings.links))


_LEVELS = {"info": 20, "warning": 30, "error": 40}
_RIGHTS = "run as root, or give it AmbientCapabilities=CAP_NET_ADMIN CAP_BPF as deploy/inferlane.service does"
