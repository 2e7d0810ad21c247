# SPDX-License-Identifier: Apache-2.0
"""What the gateway adds to a token stream: to its first token, and between two of them.

The same server is asked directly and through the gateway, over HTTP/3 and over HTTP/1.1 with TLS, in turns in each
round; what is added is the difference of two runs side by side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.processes import ServerError, resident_kib, server
from benchmarks.report import console, median, spread, write_report
from benchmarks.token_load import WAYS

HERE = Path(__file__).parent
ROOT = HERE.parent
SERVER_PORT, PORT, ADMIN_PORT = 5050, 5435, 9535
GAP_MS = 30.0


@dataclass(frozen=True, slots=True)
class Point:
    """One load: streams open at once, streams counted, tokens of each."""

    streams: int
    total: int
    tokens: int


POINTS = (Point(1, 40, 5), Point(64, 320, 20))
MEMORY_POINT, MEMORY_GAP_MS, MEMORY_STREAMS, MEMORY_READINGS = Point(64, 0, 3), 1.0, 100_000, 20
# Heading of a column, and the client's key for it.
_ADDED = (("first token", "first"), ("gap", "gap"), ("on its way", "way"))


@contextmanager
def servers(scratch: Path, gap_ms: float) -> Iterator[int]:
    """The token server and our gateway before it; the gateway's process id."""
    config = scratch / "streaming.yaml"
    text = Template((HERE / "streaming.yaml").read_text())
    config.write_text(text.substitute(port=PORT, server_port=SERVER_PORT, admin_port=ADMIN_PORT))
    tokens = [sys.executable, "-m", "benchmarks.token_server", f"--port={SERVER_PORT}", f"--gap-ms={gap_ms}"]
    gateway = [sys.executable, "-m", "proxy", "run", str(config), "--state-dir", str(scratch / "state")]
    ready = f"http://127.0.0.1:{ADMIN_PORT}/readyz"
    with (
        server(tokens, ready_url=f"http://127.0.0.1:{SERVER_PORT}/", log=scratch / "tokens.log"),
        server(gateway, ready_url=ready, log=scratch / "gateway.log") as pid,
    ):
        yield pid


def load(way: str, pid: int, point: Point, *more: str) -> dict[str, Any]:
    """One run of the client, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.token_load", f"--way={way}"]
    command += [f"--port={SERVER_PORT}"] if way == "direct" else [f"--port={PORT}", f"--pid={pid}"]
    command += [f"--streams={point.streams}", f"--total={point.total}", f"--tokens={point.tokens}", *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise ServerError(f"{way}, {point.streams} streams: {done.stderr.strip()[-2000:]}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def compare(scratch: Path, rounds: int, screen: Console, *more: str) -> list[dict[str, Any]]:
    """Every point, each way in turns."""
    rows: list[dict[str, Any]] = []
    with servers(scratch, GAP_MS) as pid:
        for point in POINTS:
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for turn in range(rounds):
                for way in WAYS if turn % 2 == 0 else reversed(WAYS):
                    screen.log(f"{point.streams} streams, round {turn + 1} of {rounds}: {way}")
                    runs[way].append(load(way, pid, point, f"--gap-ms={GAP_MS}", *more))
            rows.append({"streams": point.streams, "runs": runs, "added": _added(runs)})
    return rows


def _added(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Way -> figure -> what each round's run took longer than the direct one of the same round, ms."""
    figures = [f"{key}_{share}_ms" for _, key in _ADDED for share in ("p50", "p99")]
    return {
        way: {
            figure: [ours[figure] - direct[figure] for ours, direct in zip(runs[way], runs["direct"], strict=True)]
            for figure in figures
        }
        for way in WAYS
        if way != "direct"
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Medians over the rounds; of what is added also the range."""
    table = Table(title=f"Token streams, a token every {GAP_MS:g} ms: direct, and what the gateway adds, p50 / p99 ms")
    for heading in ("streams", "way", *(heading for heading, _ in _ADDED), "tokens/s", "CPU µs/token"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        for way in WAYS:
            runs = row["runs"][way]
            added = row["added"].get(way)
            cells = [_cell(runs, key) if added is None else _added_cell(added, key) for _, key in _ADDED]
            cpu = "" if added is None else f"{median(run['server_cpu_us'] for run in runs):.0f}"
            rate = f"{median(run['tokens_per_s'] for run in runs):.0f}"
            table.add_row(str(row["streams"]), way, *cells, rate, cpu, end_section=way == WAYS[-1])
    return table


def _cell(runs: list[dict[str, Any]], key: str) -> str:
    return " / ".join(f"{median(run[f'{key}_{share}_ms'] for run in runs):.2f}" for share in ("p50", "p99"))


def _added_cell(added: dict[str, list[float]], key: str) -> str:
    return "\n".join(f"+ {spread(added[f'{key}_{share}_ms'])}" for share in ("p50", "p99"))


def watch_memory(scratch: Path, streams: int, screen: Console) -> list[int]:
    """Resident KiB of the gateway at the start and after each twentieth of so many streams, the doors in turns."""
    point = Point(MEMORY_POINT.streams, streams // MEMORY_READINGS - MEMORY_POINT.streams, MEMORY_POINT.tokens)
    with servers(scratch, MEMORY_GAP_MS) as pid:
        readings = [resident_kib(pid)]
        for turn in range(MEMORY_READINGS):
            load(WAYS[1 + turn % 2], pid, point, f"--gap-ms={MEMORY_GAP_MS}")
            readings.append(resident_kib(pid))
            screen.log(f"after {(turn + 1) * streams // MEMORY_READINGS} streams: {readings[-1]} KiB")
    return readings


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lockstep", action="store_true", help="all streams' tokens at one instant, as of one batch")
    parser.add_argument("--memory", action="store_true", help="only: is memory flat over --streams short streams?")
    parser.add_argument("--streams", type=int, default=MEMORY_STREAMS, help="of --memory")
    arguments = parser.parse_args()
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-streaming-") as scratch:
            if arguments.memory:
                readings = watch_memory(Path(scratch), arguments.streams, screen)
                figures = {"streams": arguments.streams, "resident_kib": readings}
                screen.print("resident KiB:", *readings)
                screen.print(f"the second half added {readings[-1] - readings[MEMORY_READINGS // 2]} KiB")
                screen.print(write_report("streaming-memory", figures))
            else:
                rows = compare(Path(scratch), arguments.rounds, screen, *["--lockstep"] * arguments.lockstep)
                screen.print(table_of(rows))
                name = "streaming-lockstep" if arguments.lockstep else "streaming"
                screen.print(write_report(name, {"rounds": arguments.rounds, "gap_ms": GAP_MS, "points": rows}))
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
