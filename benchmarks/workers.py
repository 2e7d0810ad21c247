# SPDX-License-Identifier: Apache-2.0
"""Two workers beside one: requests a second, with the load's client and the upstream confined to one core; and whether
every packet reaches the worker that knows its connection while clients move and a worker is killed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.h3.compare import Point, load, run_module
from benchmarks.h3.servers import OUR_ADMIN_PORT, OURS, PORTS, ROOT, gateway, upstream
from benchmarks.processes import ServerError
from benchmarks.report import console, median, spread, write_report

CONFS = {1: ROOT / "conf" / "bench-forward.yaml", 2: ROOT / "conf" / "bench-workers.yaml"}
POINT = Point(128, 16)
ADMIN = f"127.0.0.1:{OUR_ADMIN_PORT}"
WRONG = "misdirected"
"""How the gateway counts a packet of a connection that another living worker has."""


@contextmanager
def confined() -> Iterator[None]:
    """What is started meanwhile gets the last of our cores, and no other."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def throughput(scratch: Path, rounds: int, requests: int, screen: Console) -> dict[int, list[dict[str, Any]]]:
    """One worker and two, in turns."""
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in CONFS}
    with confined(), upstream(scratch):
        for turn in range(rounds):
            for count in CONFS if turn % 2 == 0 else reversed(list(CONFS)):
                screen.log(f"round {turn + 1} of {rounds}: {count} of them")
                with _unconfined(), gateway(scratch, CONFS[count]) as pid, confined():
                    runs[count].append(load(PORTS[OURS], pid, POINT, requests))
    return runs


@contextmanager
def _unconfined() -> Iterator[None]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def wander(scratch: Path, requests: int) -> dict[str, Any]:
    """Moving clients, one worker killed at half of the requests; what was lost and what went to the wrong worker."""
    with upstream(scratch), gateway(scratch, CONFS[2]):
        port = f"--port={PORTS[OURS]}"
        calm = run_module("benchmarks.h3.wanderers", port, f"--requests={requests // 2}")
        calm["to_the_wrong_worker"] = _wrong()
        killed = run_module("benchmarks.h3.wanderers", port, f"--requests={requests // 2}", f"--kill={ADMIN}")
        killed["to_the_wrong_worker"] = _wrong() - calm["to_the_wrong_worker"]
    return {"moving": calm, "moving, one worker killed": killed}


def _wrong() -> float:
    with urllib.request.urlopen(f"http://{ADMIN}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    return sum(each.value for each in samples if WRONG in (each.name, *each.labels.values()))


def _tables(runs: dict[int, list[dict[str, Any]]], wandered: dict[str, Any]) -> list[Table]:
    table = Table(title=f"{POINT.in_flight} in flight over {POINT.connections} connections, the load on one core")
    for heading in ("workers", "requests/s", "of one worker's", "CPU µs/request", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for count, found in runs.items():
        ratios = [two["requests_per_s"] / one["requests_per_s"] for two, one in zip(found, runs[1], strict=True)]
        middle = {key: median(run[key] for run in found) for key in ("server_cpu_us", "p50_ms", "p99_ms")}
        rate = spread((run["requests_per_s"] for run in found), digits=0)
        table.add_row(
            str(count),
            rate,
            "" if count == 1 else spread(ratios),
            f"{middle['server_cpu_us']:.0f}",
            f"{middle['p50_ms']:.1f}",
            f"{middle['p99_ms']:.1f}",
        )
    moved = Table(title="Two workers, 32 connections whose clients move every 50 answers")
    for heading in ("", "answered", "moves", "lost", "connections lost", "to the wrong worker"):
        moved.add_column(heading, justify="right" if heading else "left")
    for name, found in wandered.items():
        keys = ("answered", "moves", "lost", "connections_lost", "to_the_wrong_worker")
        moved.add_row(name, *(f"{found[key]:.0f}" for key in keys))
    return [table, moved]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6000, help="per number of workers and round")
    parser.add_argument("--wander", type=int, default=100_000, help="requests of moving clients, half of them calm")
    given = parser.parse_args()
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-workers-") as folder:
            runs = throughput(Path(folder), given.rounds, given.requests, screen)
            screen.log(f"{given.wander} requests of clients that move")
            wandered = wander(Path(folder), given.wander)
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    screen.print(*_tables(runs, wandered), sep="\n")
    screen.print(write_report("workers", {"rounds": given.rounds, "throughput": runs, "moving": wandered}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
