# SPDX-License-Identifier: Apache-2.0
"""What one forwarded HTTP/3 request costs our gateway, beside Envoy in the same run.

Both forward to the same nginx over HTTP/1.1 and get the same load from the same client, in turns, each round in
the other order: on a shared machine read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.h3_load import ANSWER_BYTES
from benchmarks.processes import ServerError, envoy_command, server
from benchmarks.report import console, median, spread, write_report
from proxy.certificate import development_certificate

HERE = Path(__file__).parent
ROOT = HERE.parent
OURS, ENVOY = "inferlane", "envoy"
PORTS = {OURS: 5433, ENVOY: 5533}
OUR_ADMIN_PORT, ENVOY_ADMIN_PORT = 9533, 9633
# What aioquic's server grants, and the gateway keeps.
STREAMS = 128


@dataclass(frozen=True, slots=True)
class Point:
    """One load."""

    in_flight: int
    connections: int


POINTS = (Point(1, 1), Point(32, 1), Point(64, 1), Point(512, 8))
MEMORY_POINT = Point(64, 8)
MEMORY_REQUESTS = 100_000


@contextmanager
def upstream(scratch: Path) -> Iterator[None]:
    """Debian's nginx on 127.0.0.1:5030."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise ServerError("nginx is not installed: apt-get install nginx-light")
    config = scratch / "nginx.conf"
    answer = "{" + " " * (ANSWER_BYTES - 2) + "}"
    config.write_text(Template((HERE / "nginx.conf").read_text()).substitute(answer=answer))
    command = [nginx, "-p", str(scratch), "-e", "nginx.err", "-c", str(config)]
    with server(command, ready_url="http://127.0.0.1:5030/", log=scratch / "nginx.log"):
        yield


@contextmanager
def gateway(scratch: Path) -> Iterator[int]:
    """Our gateway with conf/bench-forward.yaml."""
    command = [sys.executable, "-m", "proxy", "run", str(ROOT / "conf" / "bench-forward.yaml")]
    ready = f"http://127.0.0.1:{OUR_ADMIN_PORT}/readyz"
    with server(command, ready_url=ready, log=scratch / "inferlane.log") as pid:
        yield pid


@contextmanager
def envoy(scratch: Path) -> Iterator[int]:
    """Envoy, one worker."""
    certificate, key = development_certificate(scratch)
    config = scratch / "envoy.yaml"
    config.write_text(
        Template((HERE / "envoy.yaml").read_text()).substitute(
            port=PORTS[ENVOY], admin_port=ENVOY_ADMIN_PORT, streams=STREAMS, certificate=certificate, key=key
        )
    )
    ready = f"http://127.0.0.1:{ENVOY_ADMIN_PORT}/ready"
    with server(envoy_command(config), ready_url=ready, log=scratch / "envoy.log") as pid:
        yield pid


def load(port: int, pid: int, point: Point, requests: int, samples: int = 0) -> dict[str, Any]:
    """One run of the client, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.h3_load", f"--port={port}", f"--pid={pid}", f"--requests={requests}"]
    command += [f"--connections={point.connections}", f"--in-flight={point.in_flight}", f"--samples={samples}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise ServerError(f"{point.in_flight} in flight on port {port}: {done.stderr.strip()}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def compare(scratch: Path, rounds: int, requests: int, screen: Console) -> list[dict[str, Any]]:
    """Every point, both gateways in turns."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as running:
        running.enter_context(upstream(scratch))
        pids = {OURS: running.enter_context(gateway(scratch)), ENVOY: running.enter_context(envoy(scratch))}
        for point in POINTS:
            runs: dict[str, list[dict[str, Any]]] = {OURS: [], ENVOY: []}
            for turn in range(rounds):
                for name in (OURS, ENVOY) if turn % 2 == 0 else (ENVOY, OURS):
                    screen.log(f"{point.in_flight} in flight, round {turn + 1} of {rounds}: {name}")
                    runs[name].append(load(PORTS[name], pids[name], point, requests))
            rows.append({"in_flight": point.in_flight, "connections": point.connections, "runs": runs})
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Medians over the rounds; of the ratio also its range."""
    table = Table(title="HTTP/3, 1,000-byte POST forwarded over HTTP/1.1, 200-byte answer")
    for heading in ("in flight", "gateway", "CPU µs/request", "ours / Envoy", "p50 ms", "p99 ms", "requests/s"):
        table.add_column(heading, justify="left" if heading == "gateway" else "right")
    table.add_column("client CPU µs", justify="right")
    for row in rows:
        runs = row["runs"]
        ratios = [a["server_cpu_us"] / b["server_cpu_us"] for a, b in zip(runs[OURS], runs[ENVOY], strict=True)]
        for name in (OURS, ENVOY):
            middle = {key: median(run[key] for run in runs[name]) for key in runs[name][0] if key != "resident_kib"}
            table.add_row(
                f"{row['in_flight']} over {row['connections']}" if row["connections"] > 1 else str(row["in_flight"]),
                name,
                f"{middle['server_cpu_us']:.0f}",
                spread(ratios) if name == OURS else "",
                f"{middle['p50_ms']:.2f}",
                f"{middle['p99_ms']:.2f}",
                f"{middle['requests_per_s']:.0f}",
                f"{middle['client_cpu_us']:.0f}",
                end_section=name == ENVOY,
            )
    return table


def watch_memory(scratch: Path) -> dict[str, Any]:
    """100,000 requests through our gateway, its resident memory read twenty times."""
    with upstream(scratch), gateway(scratch) as pid:
        return load(PORTS[OURS], pid, MEMORY_POINT, MEMORY_REQUESTS, samples=20)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000, help="per gateway, load and round")
    parser.add_argument("--memory", action="store_true", help="only: is memory flat over 100,000 requests?")
    arguments = parser.parse_args()
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-h3-") as scratch:
            if arguments.memory:
                outcome = watch_memory(Path(scratch))
                screen.print("resident KiB, every 5,000 requests:", *outcome["resident_kib"])
                screen.print(write_report("h3-memory", outcome))
            else:
                rows = compare(Path(scratch), arguments.rounds, arguments.requests, screen)
                screen.print(table_of(rows))
                screen.print(write_report("h3", {"rounds": arguments.rounds, "points": rows}))
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
