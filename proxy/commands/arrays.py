# SPDX-License-Identifier: Apache-2.0
"""Tensors as files: what `inferlane infer` reads from .npy files, writes to them, and shows of them."""

from __future__ import annotations

import tokenize
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayError", "read_inputs", "write_outputs"]

# numpy parses a file's header as Python source.
_UNREADABLE = (ValueError, EOFError, OverflowError, TypeError, SyntaxError, tokenize.TokenError)


class ArrayError(Exception):
    """A file that holds no tensor, or a tensor that no file holds: one line."""


def read_inputs(given: Sequence[str]) -> dict[str, NDArray[Any]]:
    """`NAME=FILE.npy`, each -> the arrays by name. Raises ArrayError."""
    inputs: dict[str, NDArray[Any]] = {}
    for each in given:
        name, equals, file = each.partition("=")
        if not (name and equals and file):
            raise ArrayError(f"--input {each!r}: write NAME=FILE.npy")
        if name in inputs:
            raise ArrayError(f"--input {each!r}: {name} is given twice")
        inputs[name] = _read(Path(file))
    return inputs


def _read(file: Path) -> NDArray[Any]:
    try:
        with file.open("rb") as opened, warnings.catch_warnings(action="ignore"):  # of headers by Python 2
            # No pickles: they run what their author wrote. So arrays of Python objects cannot be read.
            return np.lib.format.read_array(opened, allow_pickle=False)
    except OSError as error:
        raise ArrayError(f"{file}: {error.strerror}") from None
    except MemoryError:
        raise ArrayError(f"{file}: its shape does not fit into memory") from None
    except _UNREADABLE as error:
        if "Object arrays" in str(error):
            raise ArrayError(f"{file}: an array of Python objects; save text as an array of dtype S or U") from None
        raise ArrayError(f"{file}: not a .npy file ({str(error).splitlines()[0]})") from None


def write_outputs(outputs: Mapping[str, NDArray[Any]], directory: Path) -> dict[str, Path]:
    """Each array as NAME.npy -> the files by name. Raises ArrayError."""
    files = {}
    for name, array in outputs.items():
        # Quoted: a server chose the name, and it must not choose a directory.
        file = directory / f"{quote(name, safe='')}.npy"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            np.save(file, _without_objects(name, array), allow_pickle=False)
        except OSError as error:
            raise ArrayError(f"{file}: {error.strerror}") from None
        files[name] = file
    return files


def _without_objects(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """BYTES tensors hold Python objects, which a file without pickles cannot; dtype S can, up to a detail."""
    if array.dtype != object:
        return array
    if any(item.endswith(b"\0") for item in array.flat):
        raise ArrayError(f"output {name}: numpy's dtype S cannot hold bytes that end with NUL; ask for it with --json")
    return array.astype(np.bytes_)
