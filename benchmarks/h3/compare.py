# SPDX-License-Identifier: Apache-2.0
"""Every point of load, the gateways in turns: what a forwarded request, a handshake and an idle connection cost.

All forward to the same nginx over HTTP/1.1 and get the same load from the same client, each round in the other order:
on a shared machine read the ratios, not the milliseconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.h3.servers import ANSWER_BYTES, ENVOY, OURS, PORTS, ROOT, Start, gateway, upstream
from benchmarks.processes import ServerError
from benchmarks.report import median, spread

__all__ = ["POINTS", "Point", "compare", "connections", "load", "run_module", "tables", "watch_memory"]

KIB, MIB = 1024, 1024 * 1024
WARM_UP = 300


@dataclass(frozen=True, slots=True)
class Point:
    """One load. part: of the requests of a round, where each takes longer."""

    in_flight: int
    connections: int
    body: int = 1000
    answer: int = ANSWER_BYTES
    part: float = 1.0

    @property
    def name(self) -> str:
        """For people."""
        over = f" over {self.connections}" if self.connections > 1 else ""
        size = f", {self.body // KIB} KiB" if self.body >= KIB else ""
        return f"{self.in_flight}{over}{size}"


POINTS = (
    Point(1, 1, part=0.5),
    Point(32, 1),
    Point(64, 1),
    Point(512, 8),
    Point(100, 100),
    Point(8, 1, 64 * KIB, 64 * KIB, part=0.1),
    Point(2, 1, MIB, MIB, part=0.01),
)
HANDSHAKES, IDLE = 200, 500
MEMORY_POINT = Point(64, 8)
MEMORY_REQUESTS = 100_000
Rows = list[dict[str, Any]]


def run_module(module: str, *options: object) -> dict[str, Any]:
    """A load in a process of its own. Raises ServerError with what it said."""
    command = [sys.executable, "-m", module, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise ServerError(f"{' '.join(command[2:])}: {done.stderr.strip()}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def load(port: int, pid: int, point: Point, requests: int, samples: int = 0) -> dict[str, Any]:
    """One run of the client."""
    options = {
        "port": port,
        "pid": pid,
        "requests": requests,
        "warmup": max(point.in_flight, min(WARM_UP, requests // 5)),
        "connections": point.connections,
        "in-flight": point.in_flight,
        "samples": samples,
        "body": point.body,
        "answer": point.answer,
    }
    return run_module("benchmarks.h3.load", *(f"--{name}={value}" for name, value in options.items()))


Once = Callable[[str, int], dict[str, Any]]
"""One turn: a gateway's name and process id -> its figures."""


def _in_turns(pids: Mapping[str, int], rounds: int, what: str, once: Once, screen: Console) -> dict[str, Rows]:
    runs: dict[str, Rows] = {name: [] for name in pids}
    for turn in range(rounds):
        for name in pids if turn % 2 == 0 else reversed(list(pids)):
            screen.log(f"{what}, round {turn + 1} of {rounds}: {name}")
            runs[name].append(once(name, pids[name]))
    return runs


def compare(
    scratch: Path, starts: Mapping[str, Start], points: Sequence[Point], rounds: int, requests: int, screen: Console
) -> tuple[Rows, Rows]:
    """Requests at every point; then handshakes and idle connections."""
    with ExitStack() as running:
        running.enter_context(upstream(scratch))
        pids = {name: running.enter_context(start(scratch)) for name, start in starts.items()}
        rows = []
        for point in points:
            count = max(20, int(requests * point.part))

            def once(name: str, pid: int, point: Point = point, count: int = count) -> dict[str, Any]:
                return load(PORTS[name], pid, point, count)

            rows.append({**asdict(point), "runs": _in_turns(pids, rounds, point.name, once, screen)})
        return rows, connections(pids, rounds, screen)


def connections(pids: Mapping[str, int], rounds: int, screen: Console) -> Rows:
    """What they cost by themselves."""
    kinds = {
        "full handshake": [f"--count={HANDSHAKES}"],
        "resumed handshake": [f"--count={HANDSHAKES}", "--resume"],
        "idle connection": [f"--count={IDLE}", "--idle"],
    }
    rows = []
    for kind, options in kinds.items():

        def once(name: str, pid: int, options: list[str] = options) -> dict[str, Any]:
            return run_module("benchmarks.h3.handshakes", f"--port={PORTS[name]}", f"--pid={pid}", *options)

        rows.append({"kind": kind, "runs": _in_turns(pids, rounds, kind, once, screen)})
    return rows


def tables(rows: Rows, others: Rows) -> list[Table]:
    """Medians over the rounds; of the ratio to Envoy also its range."""
    table = Table(title="HTTP/3, 1,000-byte POST forwarded over HTTP/1.1, 200-byte answer, unless said otherwise")
    table.add_column("in flight", justify="right")
    table.add_column("gateway")
    for heading in ("CPU µs/request", "of Envoy's", "p50 ms", "p99 ms", "requests/s", "client CPU µs"):
        table.add_column(heading, justify="right")
    for row in rows:
        point = Point(**{key: value for key, value in row.items() if key != "runs"})
        for name, runs in row["runs"].items():
            middle = {key: median(run[key] for run in runs) for key in runs[0] if key != "resident_kib"}
            table.add_row(
                point.name,
                name,
                f"{middle['server_cpu_us']:.0f}",
                _of_envoys(row["runs"], name, "server_cpu_us"),
                f"{middle['p50_ms']:.2f}",
                f"{middle['p99_ms']:.2f}",
                f"{middle['requests_per_s']:.0f}",
                f"{middle['client_cpu_us']:.0f}",
                end_section=name == list(row["runs"])[-1],
            )
    return [table, _connections_table(others)]


def _connections_table(others: Rows) -> Table:
    table = Table(title="Connections by themselves")
    for heading in ("what", "gateway", "each", "of Envoy's"):
        table.add_column(heading, justify="right" if heading in ("each", "of Envoy's") else "left")
    for row in others:
        for name, runs in row["runs"].items():
            key = next(iter(runs[0]))
            values = [run[key] for run in runs if run[key] is not None]
            each = f"{median(values):.0f} {'KiB' if key.startswith('kib') else 'µs CPU'}" if values else "no tickets"
            if values and "resumed" in runs[0] and row["kind"].startswith("resumed"):
                each += "" if all(run["resumed"] == HANDSHAKES for run in runs) else " (not resumed)"
            table.add_row(row["kind"], name, each, _of_envoys(row["runs"], name, key) if values else "")
    return table


def _of_envoys(runs: Mapping[str, Rows], name: str, key: str) -> str:
    if name == ENVOY or ENVOY not in runs:
        return ""
    pairs = zip(runs[name], runs[ENVOY], strict=True)
    ratios = [ours[key] / theirs[key] for ours, theirs in pairs if theirs[key]]
    return spread(ratios) if ratios else ""


def watch_memory(scratch: Path) -> dict[str, Any]:
    """100,000 requests through our gateway, its resident memory read twenty times."""
    with upstream(scratch), gateway(scratch) as pid:
        return load(PORTS[OURS], pid, MEMORY_POINT, MEMORY_REQUESTS, samples=20)
