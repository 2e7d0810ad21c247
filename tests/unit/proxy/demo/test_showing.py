# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from inferlane.messages import Timing
from proxy.demo.inputs import Sample
from proxy.demo.magika import Answer
from proxy.demo.showing import Row, document, table

SAMPLE = Sample(Path("/somewhere/README.md"), "interactive")


def answered(*totals: float) -> Row:
    row = Row(transport="udp", sample=SAMPLE, answer=Answer("markdown", 0.875), served_class="interactive")
    row.timings += [Timing(network=None, queue=0.0001, backend=0.002, compute=0.003, total=total) for total in totals]
    return row


def shown(*rows: Row) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table(rows))
    return console.file.getvalue()


def test_quantiles_are_milliseconds_of_what_was_measured():
    row = answered(*(n / 1000 for n in range(100, 0, -1)))
    assert row.quantile("total", 0.5) == pytest.approx(51.0)
    assert row.quantile("total", 0.99) == pytest.approx(100.0)
    assert row.quantile("network", 0.5) is None


def test_the_table_shows_answers_and_times_by_part():
    lines = shown(answered(0.004, 0.006)).splitlines()
    line = next(line for line in lines if "README.md" in line)
    assert line.split() == [
        "udp", "interactive", "README.md", "markdown", "87.5%", "-", "0.1/0.1", "2.0/2.0", "3.0/3.0", "6.0/6.0",
    ]  # fmt: skip
    assert lines[-1].strip() == "2 of 2 requests answered"


def test_refusals_are_counted_by_reason():
    row = Row(transport="quic", sample=SAMPLE, refused=["deadline", "queue_full", "deadline"])
    assert "2 of 5 requests answered; refused: 2 deadline, 1 queue_full" in shown(row, answered(0.004, 0.006))
    assert document([row])[0]["refused"] == ["deadline", "queue_full", "deadline"]


def test_the_document_is_json_with_the_same_figures():
    (row,) = json.loads(json.dumps(document([answered(0.004)])))
    assert (row["transport"], row["class"], row["label"]) == ("udp", "interactive", "markdown")
    assert row["latency_ms"]["total"] == {"p50": pytest.approx(4.0), "p99": pytest.approx(4.0)}
    assert row["latency_ms"]["network"] == {"p50": None, "p99": None}
