# SPDX-License-Identifier: Apache-2.0
"""docs/wire.md as data: its test vectors and its tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from inferlane.wire import Header, Type

PAGE = (Path(__file__).parents[2] / "docs/wire.md").read_text(encoding="utf-8")


def vectors(kind: str) -> list[dict[str, Any]]:
    """The items of the blocks fenced as `json KIND`."""
    blocks = re.findall(rf"^```json {kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [item for block in blocks for item in json.loads(block)]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, as their cells without backquotes."""
    _, _, section = PAGE.partition(f"# {heading}\n")
    lines = re.search(r"^\|[-|]+\|\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert lines, f"no table under {heading!r}"
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[1].splitlines()]


def unhex(pieces: str | list[str]) -> bytes:
    return bytes.fromhex("".join(pieces))


def header_of(fields: dict[str, Any]) -> Header:
    """A vector's `header` as a Header."""
    known = dict(fields)
    known["type"] = Type[known["type"].upper()]
    known["request_id"] = int(known["request_id"], 16)
    if known.get("cookie") is not None:
        known["cookie"] = unhex(known["cookie"])
    if "auth" in known:
        key_id, tag = known["auth"]
        known["auth"] = (key_id, unhex(tag))
    return Header(**known)
