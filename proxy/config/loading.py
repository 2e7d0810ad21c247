# SPDX-License-Identifier: Apache-2.0
"""The config file -> one frozen Config, or every problem in it with its line and column.

What the file names outside itself, certificates and models, is looked at by those who open it at start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path as FilePath

from pydantic import ValidationError

from proxy.config.checks import cross_faults
from proxy.config.errors import ConfigError, Fault, Problem, key_path, located, shape_faults
from proxy.config.link_checks import link_warnings
from proxy.config.positions import Node, Path, YamlError, parse
from proxy.config.settings import Config
from qos.schema import Reading, shown

__all__ = ["Config", "ConfigError", "Problem", "load", "load_text", "load_with_warnings", "read_text"]

# A config of a thousand pools has half of this.
MAX_BYTES = 4 * 2**20
# Of each sort; nobody reads more, and a megabyte of wrong lines should not take minutes.
MAX_FAULTS = 1000


def load(path: str | os.PathLike[str]) -> Config:
    """The gateway that the file describes. Raises ConfigError, and nothing else, whatever the file holds."""
    return load_with_warnings(path)[0]


def load_with_warnings(path: str | os.PathLike[str]) -> tuple[Config, list[Problem]]:
    """As `load`, with warnings: what works as written and may not be what was meant."""
    return load_text(read_text(path), path)


def load_text(text: str, path: str | os.PathLike[str]) -> tuple[Config, list[Problem]]:
    """The same of a text that was read from this path already: all processes of one gateway run the same one."""
    file = os.fspath(path)
    try:
        root = parse(text)
    except YamlError as error:
        at = error.position
        raise ConfigError([Problem(file, at.line, at.column, key_path(error.path), error.message)]) from None
    if not isinstance(root.value, dict):
        found = "the file is empty" if root.value is None else f"the file holds {shown(root.plain())}, not a mapping"
        raise ConfigError([Problem(file, root.at.line, root.at.column, "", f"{found}; {_LEAST}")])
    config = _verified(root, file)
    return config, located(list(islice(link_warnings(config), MAX_FAULTS)), root, file)


_LEAST = "it needs at least the keys listeners and pools; conf/gateway.yaml shows all of them"


def read_text(path: str | os.PathLike[str]) -> str:
    """What the file holds, whether or not it is a config. Raises ConfigError."""
    file = os.fspath(path)
    try:
        with open(file, "rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError([Problem(file, 1, 1, "", f"cannot be read: {reason}")]) from None
    if len(content) > MAX_BYTES:
        raise ConfigError([Problem(file, 1, 1, "", f"longer than {MAX_BYTES // 2**20} MiB; no config is")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8: byte 0x{content[error.start]:02x} here; save the file as UTF-8"
        raise ConfigError([Problem(file, line, column, "", message)]) from None


def _verified(root: Node, file: str) -> Config:
    plain = root.plain()
    faults: list[Fault] = []
    config = None
    try:
        folder = FilePath(file).parent.absolute()
        config = Config.model_validate(plain, context=Reading(folder))
    except ValidationError as error:
        faults += islice(shape_faults(error, root), MAX_FAULTS)
    faults += islice(cross_faults(plain), MAX_FAULTS)
    faults += islice(_empty(root, (), {fault.path for fault in faults}), MAX_FAULTS)
    if faults or config is None:
        raise ConfigError(located(faults, root, file))
    return config


def _empty(node: Node, path: Path, said: set[Path]) -> Iterator[Fault]:
    """Keys without a value, which YAML reads as null: never taken for `leave the default`."""
    if path in said:
        return
    if node.value is None:
        yield Fault(path, "has no value; write one or remove the key")
    elif isinstance(node.value, dict):
        for key, entry in node.value.items():
            yield from _empty(entry.node, (*path, key), said)
    elif isinstance(node.value, list):
        for place, item in enumerate(node.value):
            yield from _empty(item, (*path, place), said)
