# SPDX-License-Identifier: Apache-2.0
"""YAML 1.2 text -> a tree of plain values that knows the line and column of each. Bounded, whatever the text.

ruamel.yaml reads the text; the tree is built here from its events, because the place of an unknown key or of a value
behind an alias must be known after it, and because a few lines of YAML can stand for billions of values. Its `safe`
loader and not its `rt`, which keeps comments that nobody needs here and fails on some of them: AssertionError on
`# a\n| # b\n c\n`, found by fuzzing ruamel.yaml 0.19.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

__all__ = ["Entry", "Node", "Path", "Position", "YamlError", "parse"]

Path = tuple[str | int, ...]
"""Keys and list indices from the top down to a value."""

# A config of a hundred pools has some thousand values and is six levels deep. The bounds keep a hostile or broken
# file to a few seconds: aliases multiply values, and ruamel's time grows with the square of the depth.
MAX_VALUES = 50_000
MAX_DEPTH = 32

# YAML 1.2.2 section 10.3.2, the core schema. Digits are bounded: int() of more takes time with their square.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_OTHER_INT = re.compile(r"0o([0-7]{1,20})|0x([0-9a-fA-F]{1,16})")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


class YamlError(Exception):
    """The text is no YAML that a config may be written in."""

    def __init__(self, position: Position, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.position = position
        self.message = message
        self.path = path


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where something begins; the first line and the first column are 1."""

    line: int
    column: int


@dataclass(slots=True)
class Entry:
    """One key of a mapping."""

    at: Position
    node: Node


@dataclass(slots=True)
class Node:
    """One value. An alias is the very node it stands for."""

    at: Position
    value: str | bool | int | float | list[Node] | dict[str, Entry] | None
    size: int = 1
    """Values in it, itself among them, those behind aliases counted each time."""
    depth: int = 1
    """Levels in it, itself among them."""

    @classmethod
    def around(cls, at: Position, value: list[Node] | dict[str, Entry]) -> Node:
        """A list or mapping, measured."""
        inner = value if isinstance(value, list) else [entry.node for entry in value.values()]
        size, depth = sum(each.size for each in inner), max((each.depth for each in inner), default=0)
        return cls(at, value, size + 1, depth + 1)

    def plain(self) -> Any:
        """The value alone: mappings as dict, lists as tuple."""
        match self.value:
            case dict():
                return {key: entry.node.plain() for key, entry in self.value.items()}
            case list():
                return tuple(each.plain() for each in self.value)
        return self.value

    def place(self, path: Path, *, key: bool = False) -> Position:
        """Where the value at `path` begins, or its key; what is not there is at the nearest thing around it."""
        at, node = self.at, self
        for step in path:
            match node.value:
                case dict() if step in node.value:
                    entry = node.value[str(step)]
                    at, node = entry.at if key else entry.node.at, entry.node
                case list() if isinstance(step, int) and step < len(node.value):
                    node = node.value[step]
                    at = node.at
                case _:
                    return node.at
        return at

    def has(self, path: Path) -> bool:
        """Whether there is a value at `path`."""
        node = self
        for step in path:
            match node.value:
                case dict() if step in node.value:
                    node = node.value[str(step)].node
                case list() if isinstance(step, int) and step < len(node.value):
                    node = node.value[step]
                case _:
                    return False
        return True


def parse(text: str) -> Node:
    """The one document in `text`. Raises YamlError at the first thing that is wrong."""
    try:
        return _Tree(YAML(typ="safe", pure=True).parse(text)).document()
    except ReaderError as error:
        before = text[: error.position]
        at = Position(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise YamlError(at, f"the character {chr(error.character)!r} cannot stand in YAML") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        message = ", ".join(filter(None, (error.context, error.problem)))
        raise YamlError(at, f"not YAML: {' '.join(message.split())}") from None
    except YAMLError as error:
        raise YamlError(Position(1, 1), f"not YAML: {error}") from None


@dataclass(slots=True)
class _Tree:
    """Builds nodes from events."""

    events: Iterator[Any]
    anchors: dict[str, Node] = field(default_factory=dict)
    values: int = 0

    def document(self) -> Node:
        next(self.events)  # the stream's start
        start = next(self.events)
        if not isinstance(start, DocumentStartEvent):
            return Node(Position(1, 1), None)
        if start.version not in (None, (1, 2)):
            raise YamlError(_at(start), "only YAML 1.2 is read here; remove the %YAML line")
        root = self.node(next(self.events), ())
        next(self.events)  # the document's end
        after = next(self.events)
        if isinstance(after, DocumentStartEvent):
            raise YamlError(_at(after), "a second document begins here; a config is one")
        return root

    def node(self, event: Any, path: Path) -> Node:
        self.count(1, _at(event), path)
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                message = f"*{event.anchor} stands for nothing: no &{event.anchor} ends before it"
                raise YamlError(_at(event), message, path)
            return self.anchors[event.anchor]
        if len(path) > MAX_DEPTH:
            raise YamlError(_at(event), f"nested deeper than {MAX_DEPTH} levels", path)
        if event.tag is not None:
            raise YamlError(_at(event), f"the tag {event.tag} has no meaning here; remove it", path)
        node = self.filled(event, path)
        if node.size > MAX_VALUES or node.depth > MAX_DEPTH:
            raise YamlError(_at(event), f"aliases make this more than {MAX_VALUES} values or {MAX_DEPTH} levels", path)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def filled(self, event: Any, path: Path) -> Node:
        if isinstance(event, SequenceStartEvent):
            return self.sequence(event, path)
        if isinstance(event, MappingStartEvent):
            return self.mapping(event, path)
        return Node(_at(event), event.value if event.style else _plain_scalar(event.value))

    def sequence(self, start: Any, path: Path) -> Node:
        items: list[Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.node(event, (*path, len(items))))
        return Node.around(_at(start), items)

    def mapping(self, start: Any, path: Path) -> Node:
        entries: dict[str, Entry] = {}
        merged: list[Node] = []
        while not isinstance(event := next(self.events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise YamlError(_at(event), "a key is a word, not a list, a mapping or an alias", path)
            key, inner = event.value, (*path, event.value)
            if key in entries:
                raise YamlError(_at(event), f"a second time; the first is in line {entries[key].at.line}", inner)
            node = self.node(next(self.events), inner)
            if key == "<<" and event.style is None:
                merged.append(node)
            else:
                entries[key] = Entry(_at(event), node)
        for node in merged:
            self.merge(entries, node, path)
        return Node.around(_at(start), entries)

    def merge(self, entries: dict[str, Entry], node: Node, path: Path) -> None:
        """`<<: *defaults`: keys that are not there already, of one mapping or a list of them (yaml.org/type/merge)."""
        for each in node.value if isinstance(node.value, list) else [node]:
            if not isinstance(each.value, dict):
                raise YamlError(each.at, "<< takes a mapping, or a list of mappings", path)
            self.count(len(each.value), each.at, path)
            for key, entry in each.value.items():
                entries.setdefault(key, entry)

    def count(self, values: int, at: Position, path: Path) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise YamlError(at, f"more than {MAX_VALUES} values", path)


def _plain_scalar(text: str) -> str | bool | int | float | None:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if other := _OTHER_INT.fullmatch(text):
        octal, hexadecimal = other.groups()
        return int(octal, 8) if octal else int(hexadecimal, 16)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _at(event: Any) -> Position:
    return Position(event.start_mark.line + 1, event.start_mark.column + 1)
