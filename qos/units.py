# SPDX-License-Identifier: Apache-2.0
"""Durations and sizes as people write them: always with their unit, `20ms`, `64KiB`."""

from __future__ import annotations

import re

__all__ = ["format_duration", "parse_duration", "parse_size"]

# Bounded digits: a million of them are no duration, and must not become `inf`.
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(us|ms|s|m)")
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)")
_PER_SECOND = {"us": 1e6, "ms": 1e3, "s": 1.0}
_DECIMALS = {"us": 3, "ms": 6, "s": 9}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_duration(text: str) -> float:
    """`250us`, `20ms`, `2s`, `5m` -> seconds. ValueError says how to write it."""
    match = _DURATION.fullmatch(text)
    if match is None:
        if _NUMBER.fullmatch(text):
            raise ValueError(f"{text:.40} has no unit; write {text:.40}ms or {text:.40}s")
        raise ValueError(f"{text!r:.40} is not a time; write it as 250us, 20ms, 2s or 5m")
    number, unit = match.groups()
    return float(number) * 60 if unit == "m" else float(number) / _PER_SECOND[unit]


def format_duration(seconds: float) -> str:
    """Seconds -> what `parse_duration` reads, to the nanosecond."""
    if seconds >= 60 and seconds % 60 == 0:
        return f"{seconds / 60:.0f}m"
    unit = "s" if seconds >= 1 or seconds == 0 else "ms" if seconds >= 1e-3 else "us"
    digits = f"{seconds * _PER_SECOND[unit]:.{_DECIMALS[unit]}f}"
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}{unit}"


def parse_size(text: str) -> int:
    """`512B`, `64KiB`, `8MiB`, `1GiB` -> bytes. ValueError says how to write it."""
    match = _SIZE.fullmatch(text)
    if match is None:
        if _NUMBER.fullmatch(text):
            raise ValueError(f"{text:.40} has no unit; write {text:.40}B, {text:.40}KiB or {text:.40}MiB")
        raise ValueError(f"{text!r:.40} is not a size; write it as 512B, 64KiB, 8MiB or 1GiB")
    number, unit = match.groups()
    return int(number) * _BYTES[unit]
