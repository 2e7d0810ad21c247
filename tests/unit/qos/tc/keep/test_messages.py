# SPDX-License-Identifier: Apache-2.0
"""The words between gateway and keeper: what is understood comes back equal, everything else is refused with words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.tc.keep.messages import (
    LONGEST_REQUEST,
    ClassReading,
    Ended,
    LinkReading,
    LogLine,
    Readings,
    Refusal,
    Reload,
    Standing,
    Statistics,
    Status,
    Stop,
    decode_report,
    decode_request,
    encode,
)

CLASS = ClassReading(
    name="bulk",
    direction="egress",
    bytes=2**63,
    packets=3,
    drops=0,
    borrows=1,
    backlog_bytes=9,
    rate=125_000,
    ceiling=None,
)
LINK = LinkReading(interface="eth0", netns=None, in_force=True, classes=(CLASS,))
REPORTS = [
    Readings(links=(LINK,), repairs=2),
    Standing(id=None, digest=None, duty="idle"),
    Standing(id="c0", digest="abc", duty="keep", links=(LINK,), repairs=1),
    LogLine(level="error", name="traffic_control_failed", interface="eth0", detail="two\nlines"),
    Refusal(detail="not understood"),
    Ended(released=True),
]


@pytest.mark.parametrize("request_", [Statistics(), Status(), Reload(), Stop()])
def test_a_request_is_one_short_line_with_one_word(request_):
    line = encode(request_)
    assert line.endswith(b"\n") and line.count(b"\n") == 1 and len(line) <= LONGEST_REQUEST
    assert list(json.loads(line)) == ["do"]
    assert decode_request(line) == request_


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_is_one_line_and_comes_back_equal(report):
    line = encode(report)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode_report(line) == report


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"stop",
        b"[]",
        b"null",
        b"{}",
        b'{"do": 1}',
        b'{"do": "delete"}',
        b'{"do": "stop", "handle": 1}',
        b'{"do": "reload", "policy": {}}',
        b'{"do": "statistics"',
        b"\xff\xfe",
        b'{"do": "statistics"} {"do": "stop"}',
        b"[" * 1000,
    ],
)
def test_anything_else_is_refused_with_what_would_be_understood(line):
    with pytest.raises(ValueError, match="statistics, status, reload and stop are"):
        decode_request(line)


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_refusal(line):
    for decode in (decode_request, decode_report):
        try:
            decode(line)
        except ValueError as error:
            assert str(error).startswith("not understood")
