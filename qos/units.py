# SPDX-License-Identifier: Apache-2.0
"""Durations, sizes, rates and shares as people write them, always with their unit: `20ms` `64KiB` `940mbit` `30%`."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = [
    "format_duration",
    "format_rate",
    "format_share",
    "parse_duration",
    "parse_rate",
    "parse_share",
    "parse_size",
]

# Bounded digits: a million of them are no duration, and must not become `inf`.
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(us|ms|s|m)")
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(kbit|mbit|gbit)")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)")
_PER_SECOND = {"us": 1e6, "ms": 1e3, "s": 1.0}
_DECIMALS = {"us": 3, "ms": 6, "s": 9}
_BITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
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


def parse_rate(text: str) -> int:
    """`500kbit`, `12.5mbit`, `10gbit`, decimal as in tc(8) -> bits per second. ValueError says how to write it."""
    match = _RATE.fullmatch(text)
    if match is None:
        if _NUMBER.fullmatch(text):
            raise ValueError(f"{text:.40} has no unit; write {text:.40}mbit or {text:.40}kbit")
        raise ValueError(f"{text!r:.40} is not a rate; write it as 500kbit, 12.5mbit or 10gbit")
    number, unit = match.groups()
    return round(Decimal(number) * _BITS[unit])


def format_rate(bits_per_s: float) -> str:
    """Bits per second -> the shortest that `parse_rate` reads, to the bit."""
    unit = "gbit" if bits_per_s >= 10**9 else "mbit" if bits_per_s >= 10**6 else "kbit"
    digits = f"{Decimal(round(bits_per_s)) / _BITS[unit]:.9f}"
    return f"{digits.rstrip('0').rstrip('.')}{unit}"


def parse_share(text: str) -> float:
    """`30%`, `12.5%` -> 0.3, 0.125. ValueError says how to write it."""
    match = _SHARE.fullmatch(text)
    if match is None:
        if _NUMBER.fullmatch(text):
            raise ValueError(f"{text:.40} has no unit; write {text:.40}%")
        raise ValueError(f"{text!r:.40} is not a share; write it as 30% or 12.5%")
    share = float(Decimal(match[1]) / 100)
    if not 0 < share <= 1:
        raise ValueError(f"a share is more than 0% and at most 100%, not {text}")
    return share


def format_share(share: float) -> str:
    """0.3 -> `30%`."""
    return f"{share * 100:.3f}".rstrip("0").rstrip(".") + "%"
