# SPDX-License-Identifier: Apache-2.0
"""The cases by the names of their published experiments (D8 to D14 of the project's notes; docs/scheduling.md)."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.sim.cases.adapting import d14
from benchmarks.sim.cases.hedging import d7
from benchmarks.sim.cases.moving import d5, d5b
from benchmarks.sim.cases.overload import overload
from benchmarks.sim.cases.queueing import d8, d9
from benchmarks.sim.cases.rules import d1, d2
from benchmarks.sim.cases.sinkhole import d10
from benchmarks.sim.cases.telemetry import d11
from benchmarks.sim.figures import Finding

__all__ = ["CASES"]

CASES: dict[str, Callable[[int], Finding]] = {
    "d1": d1,
    "d2": d2,
    "d5": d5,
    "d5b": d5b,
    "d7": d7,
    "d8": d8,
    "d9": d9,
    "d10": d10,
    "d11": d11,
    "d14": d14,
    "overload": overload,
}
