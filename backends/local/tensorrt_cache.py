# SPDX-License-Identifier: Apache-2.0
"""Where TensorRT keeps the engines that it built, from one start to the next."""

from __future__ import annotations

import os
from hashlib import file_digest
from pathlib import Path

from backends.errors import BackendError

__all__ = ["engine_cache", "user_cache"]


def engine_cache(model: Path, cache_dir: Path) -> Path:
    """The folder for this model, made if need be. By content, because TensorRT's own file names do not tell the
    weights: it would answer with those of an older model."""
    try:
        with model.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        folder = cache_dir / "tensorrt" / digest[:16]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{error.filename}: {error.strerror}; TensorRT's engines are kept there") from None
    return folder


def user_cache() -> Path:
    """The user's cache directory (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inferlane"
