# SPDX-License-Identifier: Apache-2.0
"""The command line: `python -m benchmarks.h3`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.h3.compare import POINTS, compare, tables, watch_memory
from benchmarks.h3.grid import draw, measure
from benchmarks.h3.servers import ENVOY, GATEWAYS, OURS, named
from benchmarks.processes import ServerError
from benchmarks.report import console, write_report


def main() -> int:
    """Measure, print, write. One wrong answer ends it: every figure stands for requests that were all answered."""
    parser = argparse.ArgumentParser(description="What HTTP/3 costs our gateway, beside Envoy and Caddy.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000, help="per gateway, load and round; fewer of long ones")
    parser.add_argument("--peers", default=",".join(GATEWAYS), help=f"who is measured, default: {','.join(GATEWAYS)}")
    parser.add_argument("--points", type=int, default=len(POINTS), help="only so many loads, from the first")
    parser.add_argument("--memory", action="store_true", help="only: is memory flat over 100,000 requests?")
    parser.add_argument("--grid", action="store_true", help="only: the plots of docs/performance.md")
    given = parser.parse_args()
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-h3-") as folder:
            scratch = Path(folder)
            if given.memory:
                outcome = watch_memory(scratch)
                screen.print("resident KiB, every 5,000 requests:", *outcome["resident_kib"])
                screen.print(write_report("h3-memory", outcome))
            elif given.grid:
                lines = measure(scratch, named([OURS, ENVOY]), given.rounds, given.requests, screen)
                screen.print(*draw(lines), sep="\n")
                screen.print(write_report("h3-grid", {"rounds": given.rounds, "lines": lines}))
            else:
                starts = named(given.peers.split(","))
                rows, others = compare(scratch, starts, POINTS[: given.points], given.rounds, given.requests, screen)
                screen.print(*tables(rows, others), sep="\n")
                figures = {"rounds": given.rounds, "points": rows, "connections": others}
                screen.print(write_report("h3", figures))
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
