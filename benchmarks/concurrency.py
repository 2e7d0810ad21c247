# SPDX-License-Identifier: Apache-2.0
"""How many requests a second pass the gateway with 1, 64, 512 and 1,000 clients that wait for each answer.

A quick backend answers, so the gateway is what is measured: it must not give way under clients that it cannot serve
at once. The last load is 1,000 clients with a connection each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.h3.compare import Point, load
from benchmarks.h3.servers import upstream
from benchmarks.processes import ServerError, server
from benchmarks.report import console, median, spread, write_report

HERE = Path(__file__).parent
PORT, ADMIN_PORT = 5437, 9537
POINTS = (Point(1, 1), Point(64, 8), Point(512, 8), Point(1000, 8), Point(1000, 1000))
BASE, BUSY = POINTS[1], POINTS[2]
"""Requests a second of the second are compared with those of the first."""
_PART = {POINTS[0]: 0.2, POINTS[4]: 0.4}
"""Of the requests, where they take longer: a client that is alone, and a thousand connections."""


@contextmanager
def gateway(scratch: Path) -> Iterator[int]:
    """Our gateway; its process id."""
    config = scratch / "concurrency.yaml"
    config.write_text(Template((HERE / config.name).read_text()).substitute(port=PORT, admin_port=ADMIN_PORT))
    command = [sys.executable, "-m", "proxy", "run", str(config), "--state-dir", str(scratch / "state")]
    with server(command, ready_url=f"http://127.0.0.1:{ADMIN_PORT}/readyz", log=scratch / "gateway.log") as pid:
        yield pid


def measure(scratch: Path, rounds: int, requests: int, screen: Console) -> list[dict[str, Any]]:
    """Every point once a round, so that a slow minute of the machine falls on all of them."""
    runs: dict[Point, list[dict[str, Any]]] = {point: [] for point in POINTS}
    with upstream(scratch), gateway(scratch) as pid:
        for turn in range(rounds):
            for point in POINTS if turn % 2 == 0 else reversed(POINTS):
                screen.log(f"round {turn + 1} of {rounds}: {_name(point)}")
                runs[point].append(load(PORT, pid, point, int(requests * _PART.get(point, 1))))
    return [{"in_flight": each.in_flight, "connections": each.connections, "runs": runs[each]} for each in POINTS]


def _ratios(rows: list[dict[str, Any]]) -> list[float]:
    base, busy = (rows[POINTS.index(point)]["runs"] for point in (BASE, BUSY))
    return [b["requests_per_s"] / a["requests_per_s"] for a, b in zip(base, busy, strict=True)]


def _name(point: Point) -> str:
    return f"{point.in_flight} over {point.connections}"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="HTTP/3, 1,000-byte POST forwarded over HTTP/1.1, 200-byte answer, closed loop")
    for heading in ("clients over connections", "requests/s", "p50 ms", "p99 ms", "CPU µs/request", "client CPU µs"):
        table.add_column(heading, justify="right")
    for point, row in zip(POINTS, rows, strict=True):
        middle = {key: median(run[key] for run in row["runs"]) for key in ("p50_ms", "p99_ms")}
        cpu = [f"{median(run[key] for run in row['runs']):.0f}" for key in ("server_cpu_us", "client_cpu_us")]
        rate = spread((run["requests_per_s"] for run in row["runs"]), digits=0)
        table.add_row(_name(point), rate, f"{middle['p50_ms']:.1f}", f"{middle['p99_ms']:.1f}", *cpu)
    return table


def main() -> int:
    """The command line. A wrong answer, or none, ends it: every figure stands for requests that were all answered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=5000, help="per load and round")
    arguments = parser.parse_args()
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-concurrency-") as scratch:
            rows = measure(Path(scratch), arguments.rounds, arguments.requests, screen)
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    ratios = _ratios(rows)
    screen.print(_table(rows))
    screen.print(f"{BUSY.in_flight} in flight / {BASE.in_flight}: {spread(ratios)} of the requests a second")
    figures = {"rounds": arguments.rounds, "ratios": ratios, "points": rows}
    screen.print(write_report("concurrency", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
