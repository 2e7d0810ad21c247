# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from inferlane.messages import Reply, Timing
from proxy.commands.replies import document, summary, table


@pytest.fixture
def reply():
    return Reply(
        model="magika",
        version="3",
        outputs={
            "label": np.array([[0.123456789, np.nan]], dtype=np.float32),
            "text": np.array([b"x" * 40], dtype=object),
        },
        timing=Timing(queue=0.0015, total=0.01),
        request_id="00ff",
        served_class="batch",
        dscp_seen=10,
        dscp_sent=10,
        endpoint=None,
    )


def test_the_summary_tells_what_is_known_and_no_more(reply):
    assert summary(reply).splitlines() == [
        "model magika 3  class batch  request 00ff",
        "dscp: sent AF11, seen AF11",
        "ms: queue 1.500  total 10.000",
    ]
    assert summary(replace(reply, version="", dscp_seen=None)).splitlines() == [
        "model magika  class batch  request 00ff",
        "ms: queue 1.500  total 10.000",
    ]


@pytest.mark.parametrize(
    ("sent", "seen", "line"),
    [
        (46, 0, "dscp: sent EF, seen DF: bleached on the path"),
        (46, 10, "dscp: sent EF, seen AF11: changed on the path"),
        (0, 1, "dscp: sent DF, seen LE: changed on the path"),
        (0, 0, "dscp: sent DF, seen DF"),
    ],
)
def test_what_the_path_does_to_marks_is_told(reply, sent, seen, line):
    assert summary(replace(reply, dscp_sent=sent, dscp_seen=seen)).splitlines()[1] == line


def text_of(reply, files):
    console = Console(file=io.StringIO(), width=200)
    console.print(table(reply, files))
    return console.file.getvalue()


def test_the_table_has_a_row_for_each_output(reply):
    text = text_of(reply, {})

    assert "label" in text and "FP32" in text and "[1, 2]" in text and "0.123457 nan" in text
    assert "BYTES" in text and f"'{'x' * 23}..." in text
    assert "label.npy" not in text


def test_files_are_named_where_some_were_written(reply):
    assert "out/label.npy" in text_of(reply, {"label": Path("out/label.npy"), "text": Path("out/text.npy")})


def test_the_document_says_the_same(reply):
    found = document(reply, {"label": Path("label.npy"), "text": Path("text.npy")})

    assert (found["class"], found["dscp_sent"], found["dscp_seen"]) == ("batch", 10, 10)
    assert found["timing_ms"] == {"network": None, "queue": 1.5, "backend": None, "compute": None, "total": 10.0}
    assert found["outputs"][1] == {
        "name": "text",
        "datatype": "BYTES",
        "shape": [1],
        "first_values": ["x" * 40],
        "file": "text.npy",
    }
    assert document(reply, {})["outputs"][0]["file"] is None


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.arange(100, dtype=np.uint8), list(range(8))),
        (np.array([[True], [False]]), [True, False]),
        (np.array([b"ok", b"\xff"], dtype=object), ["ok", "\\xff"]),
        (np.zeros(0), []),
        (np.array(1.5), [1.5]),
    ],
)
def test_the_first_values_are_plain(reply, array, expected):
    (output,) = document(replace(reply, outputs={"x": array}), {})["outputs"]

    assert output["first_values"] == expected
