# SPDX-License-Identifier: Apache-2.0
"""A watched file's list of endpoints -> their settings, verified as if it stood in the config itself.

It is put into a config around it, so that every check of the config's holds here too, with the file's own lines.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path as FilePath

from backends.errors import BackendError
from backends.pool_settings import PoolSettings
from backends.settings import EndpointSettings
from proxy.config import loading
from proxy.config.errors import ConfigError, Problem, key_path
from proxy.config.positions import Entry, Node, Position, YamlError, parse
from qos.schema import shown

__all__ = ["read_endpoints"]

_AROUND = 'listeners: [{name: x, bind: ["127.0.0.1:0"], accept: [udp]}]'
_PREFIX = "pools[0]."


def read_endpoints(file: FilePath, pool: PoolSettings) -> tuple[EndpointSettings, ...]:
    """What the file lists for this pool; `[]` is nobody.

    Raises BackendError: one line for each problem, with file, line and column.
    """
    name = os.fspath(file)
    try:
        listed = parse(loading.read_text(name))
        if not isinstance(listed.value, list):
            found = "the file is empty" if listed.value is None else f"the file holds {shown(listed.plain())}"
            raise ConfigError([Problem(name, listed.at.line, listed.at.column, "", f"{found}, not {_LIST}")])
        if not listed.value:
            return ()
        config = loading._verified(_config_with(listed, pool), name)
    except YamlError as error:
        at = error.position
        raise _broken([Problem(name, at.line, at.column, key_path(error.path), error.message)]) from None
    except ConfigError as error:
        raise _broken(error.problems) from None
    return config.pools[0].endpoints


_LIST = "a list of endpoints; write each as `- oip: http://10.20.0.5:8000`, or [] for nobody"


def _config_with(listed: Node, pool: PoolSettings) -> Node:
    root = parse(_AROUND)
    assert isinstance(root.value, dict)
    words: dict[str, str | list[str]] = {"name": pool.name, "model": "x", "zones": list(pool.zones)}
    table = {key: Entry(listed.at, _node(value, listed.at)) for key, value in words.items()}
    table["endpoints"] = Entry(listed.at, listed)
    root.value["pools"] = Entry(listed.at, Node.around(listed.at, [Node.around(listed.at, table)]))
    return root


def _node(value: str | list[str], at: Position) -> Node:
    return Node(at, value if isinstance(value, str) else [Node(at, each) for each in value])


def _broken(problems: list[Problem]) -> BackendError:
    own = [replace(each, key=each.key.removeprefix(_PREFIX)) for each in problems]
    return BackendError("\n".join(map(str, own)))
