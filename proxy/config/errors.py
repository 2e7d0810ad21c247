# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a config, and pydantic's findings in the words of those who write one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from proxy.config.positions import Node, Path
from proxy.config.settings import Config
from qos.schema import Settings, did_you_mean, shown

__all__ = ["ConfigError", "Fault", "Problem", "key_path", "located", "shape_faults", "unknown_name"]


# A longer list of what is allowed helps nobody.
_NAMES = 32


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, with its place."""

    file: str
    line: int
    column: int
    key: str
    """Such as `pools[0].endpoints[1].slots`; empty: the whole file."""
    message: str
    """What is wrong, and what is allowed."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return where + (f"{self.key}: {self.message}" if self.key else self.message)


class ConfigError(Exception):
    """A config that cannot be used; every problem found, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class Fault:
    """A problem whose line and column are not looked up yet."""

    path: Path
    message: str
    at_key: bool = False
    """Whether its place is the key, not the value."""


def located(faults: Sequence[Fault], root: Node, file: str) -> list[Problem]:
    """Faults with their places, in the order of the file."""
    problems = []
    for fault in faults:
        at = root.place(fault.path, key=fault.at_key)
        problems.append(Problem(file, at.line, at.column, key_path(fault.path), _one_line(fault.message)))
    return sorted(problems, key=lambda problem: (problem.line, problem.column))


def _one_line(message: str) -> str:
    """Names in a file may hold anything, and half a surrogate cannot even be written."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message)


def key_path(path: Path) -> str:
    """`("pools", 0, "model")` -> `pools[0].model`; keys that are no words are quoted."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            word = step if re.fullmatch(r"[\w-]{1,64}", step) else shown(step)
            text += f".{word}" if text else word
    return text


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """The message about a name that nothing has."""
    allowed = list(dict.fromkeys(known))[:_NAMES]
    return f"no {kind} is named {shown(name)}{did_you_mean(name, allowed)}; allowed: {', '.join(allowed)}"


def shape_faults(error: ValidationError, root: Node) -> Iterator[Fault]:
    """pydantic's findings, in our words and without its tags in their paths."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # short only because the items in it are wrong, which is said already
        path = tuple(step for step, tag in _steps(detail) if not tag)
        while path and isinstance(path[-1], int) and not root.has(path):
            path = path[:-1]  # `model: one` is read as a list of one
        yield _fault(detail, path)


def _steps(detail: ErrorDetails) -> Iterator[tuple[str | int, bool]]:
    """A pydantic location with, for each step, whether it is the tag of a variant."""
    *around, last = detail["loc"]
    yield from ((step, str(step).startswith("<")) for step in around)
    # A key that nobody knows may look like a tag; it is always the last step.
    yield last, str(last).startswith("<") and detail["type"] != "extra_forbidden"


def _fault(detail: ErrorDetails, path: Path) -> Fault:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(_table(detail["loc"][:-1]), path)
    if kind == "misplaced":
        return Fault((*path, context["key"]), context["message"], at_key=True)
    if kind == "missing":
        return Fault(path, f"missing; needed here: {', '.join(_required(_table(detail['loc'][:-1])))}")
    if detail["input"] is None:
        return Fault(path, "has no value; write one or remove the key")
    if kind == "value_error":
        return Fault(path, str(context["error"]))
    template = _MESSAGES.get(kind)
    return Fault(path, template.format(value=shown(detail["input"]), **context) if template else detail["msg"])


_MESSAGES = {
    "bool_type": "{value} is not a truth value; write true or false, without quotes",
    "int_type": "{value} is not a whole number; write it in digits alone, without quotes",
    "string_type": "{value} is not text; put it in quotes if it is meant as text",
    "tuple_type": "{value} is not a list; write [ITEM, ITEM] or begin each item with -",
    "frozen_set_type": "{value} is not a list; write [ITEM, ITEM] or begin each item with -",
    "model_type": "{value} is not a mapping; write key: value pairs",
    "too_short": "an empty list; at least one item is needed",
    "greater_than_equal": "{value} is too little; at least {ge}",
    "less_than_equal": "{value} is too much; at most {le}",
}


def _unknown_key(table: type[Settings], path: Path) -> Fault:
    key, allowed = str(path[-1]), [field.alias or name for name, field in table.model_fields.items()]
    if key in table.later:
        return Fault(path, f"not available yet; allowed: {', '.join(allowed)}", at_key=True)
    return Fault(path, f"unknown key{did_you_mean(key, allowed)}; allowed: {', '.join(allowed)}", at_key=True)


def _required(table: type[Settings]) -> list[str]:
    return [field.alias or name for name, field in table.model_fields.items() if field.is_required()]


def _table(location: Sequence[str | int]) -> type[Settings]:
    """The settings model at a pydantic location; `<Name>` in it tells which variant was chosen."""
    table: type[Settings] = Config
    inside: list[type[Settings]] = []
    for step in location:
        if isinstance(step, int):
            continue
        if step.startswith("<"):
            table = next(each for each in inside if step == f"<{each.__name__}>")
            continue
        inside = list(_settings_in(table.model_fields[step].annotation))
        table = inside[0]
    return table


def _settings_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for part in get_args(annotation):
        yield from _settings_in(part)
