# SPDX-License-Identifier: Apache-2.0
"""Requests' tensors -> one batch, row under row, and the batch's outputs back to each request. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from inferlane.oip import Array

__all__ = ["join_rows", "split_rows"]


def join_rows(requests: Sequence[Mapping[str, Array]], *, padding: int = 0) -> dict[str, Array]:
    """All requests' rows in order, then `padding` repetitions of the last row.

    A repeated row is input that the model has proven to take; zeros need not be. One request alone is not copied.
    """
    if len(requests) == 1 and not padding:
        return dict(requests[0])
    batch: dict[str, Array] = {}
    for name, last in requests[-1].items():
        parts = [request[name] for request in requests]
        if padding:
            parts.append(np.broadcast_to(last[-1:], (padding, *last.shape[1:])))
        batch[name] = np.concatenate(parts)
    return batch


def split_rows(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """Each request's rows of every output, as views. `rows`: how many each request has, in order."""
    answers: list[dict[str, Array]] = []
    begin = 0
    for count in rows:
        answers.append({name: array[begin : begin + count] for name, array in outputs.items()})
        begin += count
    return answers
