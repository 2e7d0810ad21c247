# SPDX-License-Identifier: Apache-2.0
"""What the models' process is told: which models, where to answer for each, and the classes that requests bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from backends.pool_settings import PoolSettings
from backends.settings import OnnxSettings
from qos.settings import ClassSettings

__all__ = ["Class", "Model", "ModelsStart", "classes_of", "local_models", "models_of"]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One `onnx:` endpoint."""

    pool: str
    index: int
    """Among the pool's endpoints."""
    path: str
    """The Unix socket where it answers."""
    onnx: str
    providers: list[str]
    max_size: int
    max_wait_s: float
    slots: int | None


class Class(msgspec.Struct, frozen=True, kw_only=True):
    """A class, as far as models care: its rank is its place."""

    name: str
    dscp: int
    deadline_s: float
    default: bool


class ModelsStart(msgspec.Struct, frozen=True, kw_only=True):
    """The document."""

    models: list[Model]
    classes: list[Class]
    max_body: int
    log_format: Literal["json", "console"] = "json"
    name: str = ""
    """Said in its log lines."""


def local_models(pools: Sequence[PoolSettings]) -> Iterator[tuple[str, int, OnnxSettings]]:
    """Each with its pool's name and its place among the pool's endpoints."""
    for pool in pools:
        for index, each in enumerate(pool.endpoints):
            if isinstance(each, OnnxSettings):
                yield pool.name, index, each


def models_of(pools: Sequence[PoolSettings], folder: Path) -> list[Model]:
    """All of them, each with a socket of its own. Names of pools may be long and a socket's path may not."""
    return [
        Model(
            pool=pool,
            index=index,
            path=str(folder / f"{number}.sock"),
            onnx=str(each.onnx.absolute()),
            providers=list(each.providers),
            max_size=each.batch.max_size,
            max_wait_s=each.batch.max_wait,
            slots=each.slots,
        )
        for number, (pool, index, each) in enumerate(local_models(pools))
    ]


def classes_of(classes: Sequence[ClassSettings]) -> list[Class]:
    """In their order."""
    return [Class(name=each.name, dscp=each.dscp, deadline_s=each.deadline, default=each.default) for each in classes]
