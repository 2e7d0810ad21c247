# SPDX-License-Identifier: Apache-2.0
"""DSCP code points by name, and the DS-field byte they travel in."""

from __future__ import annotations

__all__ = ["ALLOWED", "CODE_POINTS", "ds_field", "dscp_name", "dscp_of", "ecn_of", "parse_dscp"]

# RFC 2474 (CS), RFC 2597 (AF), RFC 3246 (EF), RFC 5865 (VA), RFC 8622 (LE)
CODE_POINTS: dict[str, int] = {
    "DF": 0,
    "LE": 1,
    **{f"CS{n}": 8 * n for n in range(8)},
    **{f"AF{x}{y}": 8 * x + 2 * y for x in range(1, 5) for y in range(1, 4)},
    "VA": 44,
    "EF": 46,
}
_NAMES = {value: name for name, value in reversed(CODE_POINTS.items())}
# RFC 4594 section 3: network control. A gateway that sends it outranks routing protocols.
_RESERVED = {CODE_POINTS["CS6"], CODE_POINTS["CS7"]}
ALLOWED = tuple(name for name, value in CODE_POINTS.items() if value not in _RESERVED)
"""What a class may carry."""


def parse_dscp(text: str) -> int:
    """A code point's name (`EF`, `AF21`) -> its value, 0..63. ValueError names what is allowed."""
    value = CODE_POINTS.get(text.upper())
    if value is None:
        hint = f"; write {dscp_name(int(text))}" if text.isdecimal() and int(text) in _NAMES else ""
        raise ValueError(f"{text!r} is not a DSCP{hint}; allowed: {', '.join(ALLOWED)}")
    if value in _RESERVED:
        raise ValueError(f"{text.upper()} is network control (RFC 4594 section 3) and not for inference traffic")
    return value


def dscp_name(value: int) -> str:
    """0..63 -> the code point's name, or the number where it has none."""
    return _NAMES.get(value, str(value))


def ds_field(dscp: int, ecn: int = 0) -> int:
    """The byte in the IP header (RFC 2474 section 3, RFC 3168 section 5)."""
    return dscp << 2 | ecn


def dscp_of(ds_field: int) -> int:
    """The DSCP in a DS-field byte."""
    return ds_field >> 2


def ecn_of(ds_field: int) -> int:
    """The ECN bits in a DS-field byte."""
    return ds_field & 3
