# SPDX-License-Identifier: Apache-2.0
"""What `inferlane qos selftest` prints: latency and loss by class in each phase, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from qos.selftest.figures import Figures
from qos.selftest.trial import RATE, Trial

__all__ = ["document", "table", "verdict_lines"]


def table(trial: Trial) -> Table:
    """A row a class, its figures side by side."""
    title = f"{RATE / 1e6:g} Mbit/s, flooded in class {trial.bulk_class}; kernel {trial.kernel}, engine {trial.engine}"
    made = Table(title=title)
    made.add_column("class")
    for phase in trial.phases:
        made.add_column(f"{phase.name}\np50 / p99 ms, lost", justify="right")
    for name in trial.phases[0].classes:
        made.add_row(name, *(_cell(phase.classes[name]) for phase in trial.phases))
    made.add_row("all Mbit/s", *(f"{phase.bulk / 1e6:.1f}" for phase in trial.phases), end_section=True)
    return made


def verdict_lines(trial: Trial) -> Iterable[str]:
    """Why, then whether."""
    yield from (f"note: {each}" for each in trial.notes)
    yield from trial.verdict.reasons
    yield "the classes hold on this kernel" if trial.verdict.holds else "the classes do NOT hold on this kernel"


def document(trial: Trial) -> dict[str, Any]:
    """For programs; times in seconds, rates in bits per second."""
    return {
        "holds": trial.verdict.holds,
        "reasons": trial.verdict.reasons,
        "kernel": trial.kernel,
        "engine": trial.engine,
        "flooded_class": trial.bulk_class,
        "notes": trial.notes,
        "phases": [
            {
                "name": phase.name,
                "bits_per_s": phase.bulk,
                "classes": {
                    name: {"sent": each.sent, "lost": each.lost, "p50_s": each.p50_s, "p99_s": each.p99_s}
                    for name, each in phase.classes.items()
                },
            }
            for phase in trial.phases
        ],
    }


def _cell(figures: Figures) -> str:
    return f"{figures.p50_s * 1e3:.2f} / {figures.p99_s * 1e3:.2f}, {figures.lost} of {figures.sent}"
