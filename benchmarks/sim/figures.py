# SPDX-License-Identifier: Apache-2.0
"""What a case found: rows with ours beside the published figure or the formula, and whether a bound was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

__all__ = ["Finding", "Row", "mean", "quantile", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a case's table."""

    what: str
    expected: str
    """The published figure, the formula's, or a rule beside which ours is judged."""
    ours: str
    bound: str = ""
    """In words; empty: for information."""
    kept: bool | None = None
    """Whether the bound was kept; None: nothing is judged."""


@dataclass(slots=True, kw_only=True)
class Finding:
    """All that one case found."""

    case: str
    title: str
    set_up: str
    rows: list[Row] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)
    """SVG texts by file name without its ending."""
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether no bound was missed."""
        return all(row.kept is not False for row in self.rows)

    def judge(self, what: str, expected: str, ours: str, bound: str, kept: bool) -> None:
        """Add a row with a bound."""
        self.rows.append(Row(what=what, expected=expected, ours=ours, bound=bound, kept=kept))

    def tell(self, what: str, expected: str, ours: str) -> None:
        """Add a row without one."""
        self.rows.append(Row(what=what, expected=expected, ours=ours))

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        rows = [
            {"what": row.what, "expected": row.expected, "ours": row.ours, "bound": row.bound, "kept": row.kept}
            for row in self.rows
        ]
        return {"case": self.case, "title": self.title, "set_up": self.set_up, "rows": rows, "notes": self.notes}


def table(finding: Finding) -> Table:
    """For a terminal."""
    shown = Table(title=f"{finding.case}: {finding.title}", caption=finding.set_up, title_justify="left")
    for heading in ("", "published, formula or peer", "ours", "bound", ""):
        shown.add_column(heading)
    words = {True: "kept", False: "MISSED", None: ""}
    for row in finding.rows:
        shown.add_row(row.what, row.expected, row.ours, row.bound, words[row.kept])
    return shown


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value with at least a part `q` of all at or below it; NaN where there is none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN where there is none."""
    return math.fsum(values) / len(values) if values else math.nan
