# SPDX-License-Identifier: Apache-2.0
"""A reply as `inferlane infer` prints it: for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.table import Table

from inferlane.messages import Reply
from inferlane.tensors import datatype_of
from qos.dscp import dscp_name

__all__ = ["document", "summary", "table"]

_STAGES = ("network", "queue", "backend", "compute", "total")
_VALUES = 8
_LONGEST_VALUE = 24


def summary(reply: Reply) -> str:
    """Who answered, in which class, and where the time went."""
    about = {
        "model": f"{reply.model} {reply.version}".strip(),
        "class": reply.served_class,
        "endpoint": reply.endpoint,
        "request": reply.request_id,
    }
    stages = {name: getattr(reply.timing, name) for name in _STAGES}
    lines = [
        "  ".join(f"{name} {value}" for name, value in about.items() if value is not None),
        *([] if reply.dscp_seen is None else [_marks(reply.dscp_sent, reply.dscp_seen)]),
        "ms: " + "  ".join(f"{name} {each * 1e3:.3f}" for name, each in stages.items() if each is not None),
    ]
    return "\n".join(lines)


def table(reply: Reply, files: Mapping[str, Path]) -> Table:
    """A row for each output."""
    result = Table()
    for column in ("output", "datatype", "shape", "first values"):
        result.add_column(column)
    if files:
        result.add_column("file")
    for name, array in reply.outputs.items():
        shown = " ".join(_short(value) for value in _first_values(array))
        row = [name, datatype_of(array), str(list(array.shape)), shown]
        result.add_row(*row, *([str(files[name])] if files else []))
    return result


def document(reply: Reply, files: Mapping[str, Path]) -> dict[str, Any]:
    """The same as JSON values, times in ms."""
    stages = {name: getattr(reply.timing, name) for name in _STAGES}
    return {
        "model": reply.model,
        "version": reply.version,
        "class": reply.served_class,
        "endpoint": reply.endpoint,
        "dscp_sent": reply.dscp_sent,
        "dscp_seen": reply.dscp_seen,
        "request_id": reply.request_id,
        "timing_ms": {name: None if each is None else round(each * 1e3, 3) for name, each in stages.items()},
        "outputs": [
            {
                "name": name,
                "datatype": datatype_of(array),
                "shape": list(array.shape),
                "first_values": _first_values(array),
                "file": str(files[name]) if files else None,
            }
            for name, array in reply.outputs.items()
        ],
    }


def _marks(sent: int, seen: int) -> str:
    """What became of the mark: networks may clear it at their edge, or set their own (RFC 2474 section 2)."""
    told = f"dscp: sent {dscp_name(sent)}, seen {dscp_name(seen)}"
    if sent == seen:
        return told
    return f"{told}: {'changed' if seen else 'bleached'} on the path"


def _first_values(array: NDArray[Any]) -> list[bool | int | float | str]:
    """As plain Python values, bytes as text."""
    values = array.flat[:_VALUES].tolist()
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values]


def _short(value: bool | int | float | str) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
