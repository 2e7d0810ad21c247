# SPDX-License-Identifier: Apache-2.0
"""The trial's table, verdict and document."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from proxy.commands.qos_selftest import document, table, verdict_lines
from qos.selftest.figures import Figures, Verdict
from qos.selftest.trial import Phase, Trial


def figures(p99_s: float, lost: int = 0) -> Figures:
    return Figures(sent=500, lost=lost, p50_s=p99_s / 2, p99_s=p99_s)


def trial(*, holds: bool = True) -> Trial:
    phases = tuple(
        Phase(name=name, bulk=bulk, classes={"realtime": figures(p99_s, lost), "background": figures(0.02)})
        for name, bulk, p99_s, lost in (("idle", 8e5, 1e-4, 0), ("full", 20e6, 0.105, 19), ("planned", 19e6, 2e-4, 0))
    )
    return Trial(
        kernel="6.18",
        engine="htb",
        bulk_class="background",
        phases=phases,
        verdict=Verdict(holds=holds, reasons=("realtime: as promised",)),
        notes=("interfaces[0] eth0: using bfifo",),
    )


def test_the_table_has_a_row_a_class_and_a_column_a_phase():
    printed = StringIO()
    Console(file=printed, width=160).print(table(trial()))
    (row,) = [line for line in printed.getvalue().splitlines() if "realtime" in line]
    assert "0.05 / 0.10, 0 of 500" in row
    assert "52.50 / 105.00, 19 of 500" in row
    assert "flooded in class background; kernel 6.18, engine htb" in printed.getvalue()


@pytest.mark.parametrize(("holds", "last"), [(True, "the classes hold"), (False, "the classes do NOT hold")])
def test_the_verdict_comes_last(holds, last):
    lines = list(verdict_lines(trial(holds=holds)))
    assert lines[:2] == ["note: interfaces[0] eth0: using bfifo", "realtime: as promised"]
    assert lines[-1].startswith(last)


def test_the_document_has_seconds_and_bits():
    made = document(trial())
    assert made["holds"] is True
    assert made["phases"][1]["classes"]["realtime"] == {"sent": 500, "lost": 19, "p50_s": 0.0525, "p99_s": 0.105}
    assert made["phases"][2]["bits_per_s"] == 19e6
