# SPDX-License-Identifier: Apache-2.0
"""Programs that run beside a test: started, waited for, read by their log, ended by their process id."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")

PATIENCE_S = 60.0
"""A test that waits this long has failed; a machine with other work to do may need seconds."""
_POLL_S = 0.01


def until(probe: Callable[[], T | None], what: str) -> T:
    """Ask again and again until there is something; AssertionError says what never came."""
    give_up = time.monotonic() + PATIENCE_S
    while (found := probe()) is None:
        assert time.monotonic() < give_up, f"waited {PATIENCE_S:g} s in vain for {what}"
        time.sleep(_POLL_S)
    return found


class Program:
    """One process and the log that its standard error goes to."""

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def __repr__(self) -> str:
        return f"<Program {self._process.args!r}, pid {self._process.pid}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it one."""
        self._process.send_signal(number)

    def waited_for(self, probe: Callable[[], T | None], what: str) -> T:
        """Like `until`, and a program that has ended will never be ready."""

        def alive() -> T | None:
            found = probe()
            assert found is not None or self._process.poll() is None, f"{self!r} ended:\n{self.log.read_text()}"
            return found

        return until(alive, f"{what} of {self!r}")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of a JSON log with this event, as far as they are written."""
        return [line for line in map(json.loads, self._json_lines()) if line["event"] == name]

    def faults(self) -> list[str]:
        """What a JSON log tells of bugs: errors, and whatever the log did not write."""
        errors = [line for line in self._json_lines() if json.loads(line)["level"] == "error"]
        return errors + [line for line in self._lines() if not line.startswith("{")]

    def event(self, name: str) -> dict[str, Any]:
        """The first line with this event, as soon as it is written."""
        return self.waited_for(lambda: next(iter(self.events(name)), None), f"event {name}")

    def end(self) -> int:
        """Ask it to end; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """As a machine that loses its power: no goodbye."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def _json_lines(self) -> list[str]:
        return [line for line in self._lines() if line.startswith("{")]

    def _lines(self) -> list[str]:
        return self.log.read_text().rpartition("\n")[0].splitlines()


@contextmanager
def running(command: Sequence[str | Path], log: Path) -> Iterator[Program]:
    """A program for as long as the block takes. It ends well when it is asked to, unless the test killed it."""
    program = Program(command, log)
    try:
        yield program
    finally:
        code = program.end()
    assert code in (0, -signal.SIGKILL), f"{program!r} ended with {code}:\n{log.read_text()}"


@contextmanager
def of_ours(command: Sequence[str | Path], log: Path) -> Iterator[Program]:
    """One of our own commands, whose log is JSON and must not tell of a bug."""
    with running([sys.executable, "-m", "proxy", *command], log) as program:
        yield program
    assert not program.faults()


@dataclass(frozen=True, slots=True)
class GatewayProgram:
    """`inferlane run` on ports of its own choice."""

    program: Program
    port: int
    admin: str
    ca: Path

    def url(self, scheme: str = "https") -> str:
        """Where it listens."""
        return f"{scheme}://127.0.0.1:{self.port}"

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples of a metric with these labels, now."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=PATIENCE_S) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@contextmanager
def gateway(conf: Path, *, ca: Path) -> Iterator[GatewayProgram]:
    """The gateway of a config whose ports are all 0."""
    with of_ours(["run", conf, "--state-dir", conf.parent / "state"], conf.with_suffix(".log")) as program:
        address = program.event("listening")["addresses"][0]
        admin = program.event("admin_listening")["address"]
        yield GatewayProgram(program, port=int(address.rpartition(":")[2]), admin=admin, ca=ca)


@dataclass(frozen=True, slots=True)
class ModelServerProgram:
    """`inferlane serve` on ports of its own choice."""

    program: Program
    http: str
    udp: str


@contextmanager
def model_server(models: Path, log: Path, *, http: str = "127.0.0.1:0") -> Iterator[ModelServerProgram]:
    """The models of a folder."""
    with of_ours(["serve", models, "--http", http, "--udp", "127.0.0.1:0"], log) as program:
        serving = program.event("serving")
        http, udp = ("{}:{}".format(*serving[door]) for door in ("http", "udp"))
        yield ModelServerProgram(program, http=http, udp=udp)
