# SPDX-License-Identifier: Apache-2.0
"""Runs cases of the simulator and prints ours beside the published figure or the formula.

`python -m benchmarks.sim [CASE ... | all] [--seed N] [--json] [--plots FOLDER]`; ends with 1 where a bound was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.report import console, write_report
from benchmarks.sim.cases.table import CASES
from benchmarks.sim.figures import Finding, table

PLOTS = Path(__file__).parent.parent.parent / "docs" / "scheduling"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all, or of {', '.join(CASES)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plots", type=Path, default=PLOTS, metavar="FOLDER", help="where SVG files go")
    asked = parser.parse_args()
    names = list(CASES) if not asked.cases or "all" in asked.cases else asked.cases
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"unknown case {unknown[0]}: it is one of {', '.join(CASES)}, or all")
    findings = [_run(name, asked.seed, asked.plots, quiet=asked.json) for name in names]
    documents = [finding.document() for finding in findings]
    if asked.json:
        print(json.dumps(documents, indent=1))
    if len(names) == len(CASES):
        write_report("sim", {"seed": asked.seed, "cases": documents})
    return 0 if all(finding.kept for finding in findings) else 1


def _run(name: str, seed: int, plots: Path, *, quiet: bool) -> Finding:
    began = time.process_time()
    finding = CASES[name](seed)
    plots.mkdir(parents=True, exist_ok=True)
    for file, text in finding.plots.items():
        (plots / f"{file}.svg").write_text(text)
    if not quiet:
        shown = console()
        shown.print(table(finding))
        for note in finding.notes:
            shown.print(f"  {note}")
        shown.print(f"  {time.process_time() - began:.1f} s of CPU\n")
    return finding


if __name__ == "__main__":
    sys.exit(main())
