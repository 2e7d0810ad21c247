# SPDX-License-Identifier: Apache-2.0
"""What settings of every package are made of: one strict, frozen model, and its scalars with their units.

A value read from a file must be written as text with its unit; settings made in Python may give the parsed value.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from qos.dscp import ALLOWED, parse_dscp
from qos.units import parse_duration, parse_rate, parse_share, parse_size

__all__ = [
    "Dscp",
    "Duration",
    "FilePath",
    "ModelName",
    "Name",
    "Network",
    "Rate",
    "Reading",
    "Settings",
    "Share",
    "Size",
    "did_you_mean",
    "is_pattern",
    "misplaced",
    "one_of",
    "shown",
    "written",
]


@dataclass(frozen=True, slots=True)
class Reading:
    """The validation context while a config file is read; without one, settings are being made in Python."""

    folder: Path
    """What relative paths are relative to."""


class Settings(BaseModel):
    """One table of settings: unknown keys, other types and later changes are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)

    later: ClassVar[tuple[str, ...]] = ()
    """Keys that are planned and do not work yet."""


def shown(value: object) -> str:
    """A value as its writer knows it, for messages."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a mapping"
        case tuple() | list():
            return "a list"
        case str():
            return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    return f"{value}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`; did you mean X?` where a known word is close, else nothing."""
    # Longer than any word we know: not a slip of the finger, and difflib is quadratic.
    close = difflib.get_close_matches(word, known, n=1) if len(word) <= 64 else []
    return f"; did you mean {close[0]}?" if close else ""


def misplaced(message: str, *, key: str) -> PydanticCustomError:
    """An error of a whole table that is about one of its keys: its place is that key's."""
    return PydanticCustomError("misplaced", "{message}", {"message": message, "key": key})


def written(parse: Callable[[str], object], like: str) -> BeforeValidator:
    """Parse the text of a file; what is not text is refused there with `like`, and taken as it is from Python."""

    def check(value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            return parse(value)
        if info.context is None:
            return value
        raise ValueError(f"{shown(value)} is not {like}")

    return BeforeValidator(check)


def one_of(*allowed: str, later: Collection[str] = ()) -> BeforeValidator:
    """One word of a fixed list."""

    def check(value: object) -> object:
        if value in allowed:
            return value
        if value in later:
            raise ValueError(f"{value} is not available yet; allowed: {', '.join(allowed)}")
        guess = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise ValueError(f"{shown(value)} is not known{guess}; allowed: {', '.join(allowed)}")

    return BeforeValidator(check)


def is_pattern(text: str) -> bool:
    """Whether fnmatch would read it as more than itself."""
    return any(each in text for each in "*?[")


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _name(text: str) -> str:
    # Names become metric labels, header values and wire fields: no spaces, no control characters, no surprises.
    if re.fullmatch(_NAME, text) is None:
        raise ValueError(
            f"{shown(text)} is not a name; allowed: letters, digits, . _ -, at most 64 of them, a letter or digit first"
        )
    return text


def _model_name(text: str) -> str:
    # The wire gives a model's name one length byte (docs/wire.md).
    if not text or not text.isprintable() or len(text.encode()) > 255:
        raise ValueError(f"{shown(text)} is not a model's name; allowed: 1 to 255 bytes of printable text")
    return text


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        later = "; clients by name are not available yet" if text[:1].isalpha() and ":" not in text else ""
        raise ValueError(f"{shown(text)} is not a network; write it as 10.20.0.0/16 or fd00:20::/32{later}") from None
    address = text.partition("/")[0]
    raise ValueError(f"{text} has host bits set; write {network}, or {address} for that one address")


def _file_path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        if not value or not value.isprintable():
            raise ValueError(f"{shown(value)} is not a file's path")
        reading: Reading | None = info.context
        # normpath: messages about the file must not read conf/../models/...
        return Path(os.path.normpath(reading.folder / value)) if reading else Path(value)
    if info.context is None:
        return value
    raise ValueError(f"{shown(value)} is not a file's path")


Duration = Annotated[
    float,
    written(parse_duration, "a time with its unit; write it as 250us, 20ms, 2s or 5m"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(us|ms|s|m)$", "examples": ["20ms"]}),
]
"""Seconds."""

Size = Annotated[
    int,
    written(parse_size, "a size with its unit; write it as 512B, 64KiB, 8MiB or 1GiB"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$", "examples": ["8MiB"]}),
]
"""Bytes."""

Rate = Annotated[
    int,
    written(parse_rate, "a rate with its unit; write it as 500kbit, 12.5mbit or 10gbit"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(kbit|mbit|gbit)$", "examples": ["940mbit"]}),
]
"""Bits per second."""

Share = Annotated[
    float,
    written(parse_share, "a share; write it as 30%"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%$", "examples": ["30%"]}),
]
"""More than 0, at most 1."""

Dscp = Annotated[
    int,
    written(parse_dscp, f"a DSCP's name, as EF for 46; allowed: {', '.join(ALLOWED)}"),
    WithJsonSchema({"type": "string", "enum": list(ALLOWED)}),
]
"""0..63."""

Network = Annotated[
    IPv4Network | IPv6Network,
    written(_network, "a network; write it as 10.20.0.0/16 or fd00:20::/32"),
    WithJsonSchema({"type": "string", "examples": ["10.20.0.0/16", "fd00:20::/32"]}),
]

FilePath = Annotated[Path, BeforeValidator(_file_path), WithJsonSchema({"type": "string"})]
"""In a file, relative to that file."""

Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": _NAME})]

ModelName = Annotated[str, AfterValidator(_model_name), Field(json_schema_extra={"minLength": 1, "maxLength": 255})]
"""A model's name, or a pattern of names with * ? [...]."""
