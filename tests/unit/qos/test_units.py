# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.units import (
    format_duration,
    format_rate,
    format_share,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250us", 0.00025), ("20ms", 0.02), ("2s", 2.0), ("5m", 300.0), ("0s", 0.0), ("1.5s", 1.5), ("0.5ms", 0.0005)],
)
def test_a_duration_has_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("50", "50 has no unit; write 50ms or 50s"),
        ("1.5", "1.5 has no unit; write 1.5ms or 1.5s"),
        ("1_000ms", "'1_000ms' is not a time; write it as 250us, 20ms, 2s or 5m"),
        ("20 ms", "is not a time"),
        ("-20ms", "is not a time"),
        ("20MS", "is not a time"),
        ("1h", "is not a time"),
        ("٣ms", "is not a time"),
        ("20ms\n", "is not a time"),
        ("", "is not a time"),
        ("nan", "is not a time"),
        ("9" * 400 + "s", "is not a time"),
    ],
)
def test_what_is_no_duration_is_refused_with_the_way_to_write_one(text, remedy):
    with pytest.raises(ValueError, match=r"not a time|no unit") as refused:
        parse_duration(text)
    assert remedy in str(refused.value)
    assert len(str(refused.value)) < 120


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.05, "50ms"), (2.0, "2s"), (90.0, "90s"), (600.0, "10m"), (0.00025, "250us"), (1.25, "1.25s")],
)
def test_a_duration_is_written_in_the_unit_a_person_would_take(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=4_000_000_000_000))
def test_what_is_written_is_read_back(nanoseconds):
    seconds = nanoseconds / 1e9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "size"), [("0B", 0), ("512B", 512), ("64KiB", 65536), ("8MiB", 8 << 20), ("1GiB", 1 << 30)]
)
def test_a_size_has_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("64", "64 has no unit; write 64B, 64KiB or 64MiB"),
        ("64KB", "'64KB' is not a size; write it as 512B, 64KiB, 8MiB or 1GiB"),
        ("1.5MiB", "is not a size"),
        ("1_000B", "is not a size"),
        ("9" * 400 + "B", "is not a size"),
    ],
)
def test_what_is_no_size_is_refused_with_the_way_to_write_one(text, remedy):
    with pytest.raises(ValueError, match=r"not a size|no unit") as refused:
        parse_size(text)
    assert remedy in str(refused.value)


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text):
    for parse in (parse_duration, parse_size, parse_rate, parse_share):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert 0 <= value < float("inf")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("500kbit", 500_000), ("12.5mbit", 12_500_000), ("10gbit", 10**10), ("0.008mbit", 8000), ("1.000001kbit", 1000)],
)
def test_a_rate_has_a_unit_and_is_decimal(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("20", "20 has no unit; write 20mbit or 20kbit"),
        ("20Mbit", "'20Mbit' is not a rate; write it as 500kbit, 12.5mbit or 10gbit"),
        ("20mbps", "is not a rate"),
        ("-1mbit", "is not a rate"),
        ("1e3mbit", "is not a rate"),
        ("9" * 400 + "mbit", "is not a rate"),
    ],
)
def test_what_is_no_rate_is_refused_with_the_way_to_write_one(text, remedy):
    with pytest.raises(ValueError, match=r"not a rate|no unit") as refused:
        parse_rate(text)
    assert remedy in str(refused.value)


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0kbit"), (8000, "8kbit"), (12_500_000, "12.5mbit"), (10**9, "1gbit"), (999, "0.999kbit")]
)
def test_a_rate_is_written_in_the_unit_a_person_would_take(rate, text):
    assert format_rate(rate) == text


@given(st.integers(min_value=0, max_value=400 * 10**9))
def test_a_rate_in_whole_kilobits_is_read_back(rate):
    assert parse_rate(format_rate(rate - rate % 1000)) == rate - rate % 1000


@pytest.mark.parametrize(("text", "share"), [("30%", 0.3), ("12.5%", 0.125), ("100%", 1.0), ("0.001%", 0.00001)])
def test_a_share_is_a_percentage(text, share):
    assert parse_share(text) == share
    assert format_share(share) == text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("30", "30 has no unit; write 30%"),
        ("0%", "a share is more than 0% and at most 100%, not 0%"),
        ("100.001%", "at most 100%, not 100.001%"),
        ("30 %", "'30 %' is not a share; write it as 30% or 12.5%"),
        ("-1%", "is not a share"),
        ("12.5432%", "is not a share"),
    ],
)
def test_what_is_no_share_is_refused_with_the_way_to_write_one(text, remedy):
    with pytest.raises(ValueError, match=r"share|no unit") as refused:
        parse_share(text)
    assert remedy in str(refused.value)
