# SPDX-License-Identifier: Apache-2.0
"""The tables and sentences of a diagnosis, as they are printed."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from proxy.commands.diagnose_report import parts
from qos.promise import Report
from tests.fakes.reports import BROKEN, KEPT


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    for part in parts(report):
        console.print(part)
    return console.file.getvalue()


def test_a_row_tells_the_promise_how_many_kept_it_and_where_the_time_went():
    lines = printed(BROKEN).splitlines()
    (row,) = [line for line in lines if "realtime" in line and "50ms" in line]
    assert [each.strip() for each in row.split("│")[1:-1]] == [
        "realtime",
        "magika",
        "50ms",
        "1003",
        "99.50%",
        "12.3 ms",
        "-",
        "-",
        "500 us",
        *["-"] * 4,
    ]
    below = lines[lines.index(row) + 1]
    assert [each.strip() for each in below.split("│") if each.strip()] == ["1.5 s", "49 ms"]


def test_refusals_have_a_table_where_there_are_some():
    assert "queue_full" in printed(BROKEN)
    (promise,) = BROKEN.promises
    assert "said by" not in printed(replace(BROKEN, promises=[replace(promise, refusals=[])]))


def test_a_key_in_a_sentence_is_no_markup():
    assert "Add endpoints to pools[magika].endpoints." in printed(BROKEN)


def test_only_mistakes_of_clients_leave_no_share():
    (promise,) = BROKEN.promises
    nobody = replace(promise, pool="", kept=0, missed=0, refused=0, whole=None, parts={})
    row = next(line for line in printed(replace(BROKEN, promises=[nobody])).splitlines() if "50ms" in line)
    assert [each.strip() for each in row.split("│")[1:-1]][:6] == ["realtime", "-", "50ms", "0", "-", "-"]


def test_where_nobody_asked_there_is_nothing_to_tell():
    assert printed(KEPT) == "Nobody asked for anything in the last 5m.\n"
