# SPDX-License-Identifier: Apache-2.0
"""First runs at every batch size, before the model is ready: no request pays for memory, kernels and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog

from backends.errors import BackendError
from backends.local.providers import buckets
from backends.local.signature import Signature, TensorSpec
from backends.local.worker import Run
from inferlane.errors import Refused
from inferlane.oip import DATATYPES, Array

__all__ = ["blank", "warm_up"]

log = structlog.get_logger(__name__)


def warm_up(path: Path, signature: Signature, new_run: Callable[[], Run], max_size: int) -> None:
    """Run every batch size once. Raises BackendError where the outputs show that the model cannot be batched."""
    names = [spec.name for spec in signature.outputs]
    smallest, *larger = buckets(max_size)
    # The extremes first: TensorRT widens its engine's range of shapes by building it again.
    for rows in (smallest, *reversed(larger)):
        try:
            outputs = new_run()(names, {spec.name: blank(spec, rows) for spec in signature.inputs})
        except Refused as refusal:
            # Zeros, or 1 for a free dimension, may be nothing that this model takes. Real requests decide.
            log.warning("onnx_warm_up_failed", model=str(path), rows=rows, detail=refusal.detail)
            return
        if max_size > 1:
            _check_rows(path, dict(zip(names, outputs, strict=True)), rows)


def blank(spec: TensorSpec, rows: int) -> Array:
    """Input of the right kind: a free first dimension has `rows`, the other free ones 1."""
    shape = [each if isinstance(each, int) else 1 for each in spec.shape]
    if spec.shape and not isinstance(spec.shape[0], int):
        shape[0] = rows
    return np.full(shape, "", object) if spec.datatype == "BYTES" else np.zeros(shape, DATATYPES[spec.datatype])


def _check_rows(path: Path, outputs: dict[str, Array], rows: int) -> None:
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise BackendError(
                f"{path}: output {name!r} has shape {list(array.shape)} for {rows} rows, so requests cannot be "
                "batched; leave batch.max_size at 1"
            )
