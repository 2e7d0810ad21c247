# SPDX-License-Identifier: Apache-2.0
"""What `inferlane diagnose` prints: where the time went, who was refused, and what it means, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from qos.promise import Part, Promise, Report
from qos.units import format_duration

__all__ = ["parts"]


def parts(report: Report) -> Iterator[Table | Text]:
    """For people: where the time went, who was refused, and the sentences."""
    if report.silent:
        yield Text(f"Without what these know, for they do not answer: {', '.join(report.silent)}.")
    if not report.promises:
        yield Text(f"Nobody asked for anything in the last {format_duration(report.window_s)}.")
        return
    yield _times(report)
    if any(each.refusals for each in report.promises):
        yield _refusals(report.promises)
    for promise in report.promises:
        for sentence in promise.words:
            yield Text(sentence)  # as a string pools[x] would be markup


def _times(report: Report) -> Table:
    title = f"the last {format_duration(report.window_s)}: median, and p99 below it"
    table = Table(title=title, title_justify="left")
    for column in ("class", "pool"):
        table.add_column(column)
    for column in ("promise", "requests", "in time", "whole", *(_COLUMNS[part] for part in Part)):
        table.add_column(column, justify="right")
    for each in report.promises:
        spent = [each.whole, *(each.parts.get(part) for part in Part)]
        times = ["-" if one is None else f"{_time(one.median_s)}\n{_time(one.p99_s)}" for one in spent]
        table.add_row(each.traffic_class, each.pool or "-", format_duration(each.deadline_s), *_counts(each), *times)
    return table


_COLUMNS = {part: part.value.replace("_", "\n") for part in Part} | {Part.NETWORK: "client\nrtt"}


def _counts(promise: Promise) -> tuple[str, str]:
    all_of_them = promise.kept + promise.missed + promise.refused
    return str(all_of_them), f"{promise.kept / all_of_them:.2%}" if all_of_them else "-"


def _refusals(promises: Sequence[Promise]) -> Table:
    table = Table(title="without an answer in time", title_justify="left")
    for column in ("class", "pool", "reason", "said by"):
        table.add_column(column)
    table.add_column("requests", justify="right")
    for promise in promises:
        for each in promise.refusals:
            table.add_row(promise.traffic_class, promise.pool or "-", each.reason, each.place, str(each.count))
    return table


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
