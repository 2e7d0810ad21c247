# SPDX-License-Identifier: Apache-2.0
"""Looking around in a config's plain values, where anything may be missing or of a wrong type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from proxy.config.errors import Fault, key_path
from proxy.config.positions import Path
from qos.schema import shown
from qos.settings import BUILT_IN_CLASSES
from qos.units import parse_duration

__all__ = ["Table", "duration", "names", "parsed", "repeated", "tables", "texts"]

Table = dict[str, Any]
Value = TypeVar("Value")


def tables(config: Any, *keys: str) -> Iterator[tuple[Path, Table]]:
    """The mappings in the lists that the keys lead through, each with its path."""
    found: list[tuple[Path, Any]] = [((), config)]
    for key in keys:
        found = [
            ((*path, key, place), item)
            for path, table in found
            if isinstance(items := table.get(key), tuple)
            for place, item in enumerate(items)
            if isinstance(item, dict)
        ]
    return iter(found)


def texts(table: Table, key: str) -> Iterator[tuple[Path, str]]:
    """The texts of a value that is one text or a list of them."""
    value = table.get(key)
    if isinstance(value, str):
        yield (key,), value
    elif isinstance(value, tuple):
        yield from (((key, place), item) for place, item in enumerate(value) if isinstance(item, str))


def names(config: Table, section: str) -> list[str] | None:
    """All names in a section; None where one cannot be read, so that nobody can say what is unknown."""
    if section == "classes" and section not in config:
        return [each.name for each in BUILT_IN_CLASSES]
    items = config.get(section)
    if not isinstance(items, tuple):
        return None
    names = [name for item in items if isinstance(item, dict) and isinstance(name := item.get("name"), str)]
    return names if names and len(names) == len(items) else None


def repeated(texts: Iterator[tuple[Path, str]]) -> Iterator[Fault]:
    """A fault for each text that was there before."""
    first: dict[str, Path] = {}
    for path, text in texts:
        if text in first:
            yield Fault(path, f"{shown(text)} is taken by {key_path(first[text])}; once is enough")
        first.setdefault(text, path)


def parsed(parse: Callable[[str], Value], value: object) -> Value | None:
    """The value of a text; None of anything else."""
    try:
        return parse(value) if isinstance(value, str) else None
    except ValueError:
        return None


def duration(value: object) -> float | None:
    """Seconds; None of what is no duration."""
    return parsed(parse_duration, value)
