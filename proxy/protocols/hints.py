# SPDX-License-Identifier: Apache-2.0
"""What a client may ask of the gateway in two header fields: Priority (RFC 9218) and Inferlane-Timeout. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from qos.units import parse_duration

__all__ = ["parse_priority", "parse_timeout"]

# Structured Fields, RFC 8941 section 3: what may stand in a Dictionary, as far as is needed to skip it safely.
_KEY = rb"[a-z*][a-z0-9_\-.*]*"
_BARE_ITEM = (
    rb"(?:-?[0-9]{1,12}\.[0-9]{1,3}"
    rb"|-?[0-9]{1,15}"
    rb"|\"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\[\"\\])*\""
    rb"|[A-Za-z*][!#$%&'*+\-.^_`|~A-Za-z0-9:/]*"
    rb"|:[A-Za-z0-9+/=]*:"
    rb"|\?[01])"
)
_PARAMETERS = rb"(?:; *" + _KEY + rb"(?:=" + _BARE_ITEM + rb")?)*"
_ITEM = _BARE_ITEM + _PARAMETERS
_INNER_LIST = rb"\( *(?:" + _ITEM + rb"(?: +" + _ITEM + rb")* *)?\)" + _PARAMETERS
_MEMBER = re.compile(
    rb"(?P<key>"
    + _KEY
    + rb")(?:=(?:(?P<value>"
    + _BARE_ITEM
    + rb")"
    + _PARAMETERS
    + rb"|"
    + _INNER_LIST
    + rb")|"
    + _PARAMETERS
    + rb")"
)
_COMMA = re.compile(rb"[ \t]*,[ \t]*")
_INTEGER = re.compile(rb"-?[0-9]{1,15}")


def parse_priority(field: bytes) -> int | None:
    """The urgency, 0..7, in a Priority field; None where it says none.

    Unknown members are passed over; an urgency of another type or out of range is as good as absent (RFC 9218
    section 4), and so is a whole field that is no Dictionary (RFC 8941 section 4.2).
    """
    return _urgency(field)


@lru_cache(maxsize=256)  # clients send a handful of values
def _urgency(field: bytes) -> int | None:
    value = None
    text = field.strip(b" ")
    place = 0
    while place < len(text):
        member = _MEMBER.match(text, place)
        if member is None:
            return None
        if member["key"] == b"u":
            value = member["value"]  # of several the last counts
        place = member.end()
        if place < len(text):
            comma = _COMMA.match(text, place)
            if comma is None or comma.end() == len(text):
                return None
            place = comma.end()
    if value is None or not _INTEGER.fullmatch(value):
        return None
    return int(value) if 0 <= int(value) <= 7 else None


def parse_timeout(field: bytes) -> float:
    """`50ms` in an Inferlane-Timeout field -> seconds. ValueError says how to write it."""
    seconds = parse_duration(field.decode("ascii", "replace").strip(" \t"))
    if seconds <= 0:
        raise ValueError("the time a request has is longer than 0; write it as 50ms or 2s")
    return seconds
