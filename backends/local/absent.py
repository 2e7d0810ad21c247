# SPDX-License-Identifier: Apache-2.0
"""Why a provider that was asked for is not there, and how to get it. Looks at what is installed; decides nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

__all__ = ["REMEDY", "installed_twice", "load_nvidia_libraries"]

REMEDY = "install the extra `gpu` (pip install -e '.[gpu]' in the checkout) on a machine with an NVIDIA GPU and driver"

_FAILED = re.compile(r"^Failed to load (.+?): (.+)$", re.MULTILINE)
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def installed_twice(version_of: Callable[[str], str] = version) -> str | None:
    """What to do about two distributions that overwrite each other's files; None where there is one."""
    found = []
    for name in _DISTRIBUTIONS:
        try:
            found.append(f"{name} {version_of(name)}")
        except PackageNotFoundError:
            continue
    if len(found) < 2:
        return None
    return (
        f"{' and '.join(found)} are both installed and overwrite each other's files; run "
        f"pip uninstall -y {' '.join(_DISTRIBUTIONS)}, then pip install onnxruntime-gpu"
    )


def load_nvidia_libraries(providers: Sequence[str], preload: Callable[[], None]) -> list[str]:
    """Load from their wheels what the providers need, which is on no library path; say what could not be loaded.

    preload: onnxruntime.preload_dlls, which tells its failures by printing them.
    """
    if not {"cuda", "tensorrt"}.intersection(providers):
        return []
    printed = io.StringIO()
    with redirect_stdout(printed):
        preload()
    failures = _missing(printed.getvalue())
    if "tensorrt" in providers:
        try:
            import_module("tensorrt_libs")  # loads libnvinfer as it is imported
        except (ImportError, OSError) as error:
            failures.append(f"TensorRT: {error}")
    return failures


def _missing(printed: str) -> list[str]:
    """`Failed to load NAME: why` lines -> one sentence: all the names, and the first reason."""
    pairs = [found.groups() for found in _FAILED.finditer(printed)]
    if not pairs:
        return []
    return [f"cannot load {', '.join(name for name, _ in pairs)} ({pairs[0][1].removeprefix(f'{pairs[0][0]}: ')})"]
