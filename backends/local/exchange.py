# SPDX-License-Identifier: Apache-2.0
"""A request's body -> what the model is run on; the model's outputs -> the reply. Pure, so that it can run anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from backends.local.signature import Signature, check_inputs, check_outputs, metadata
from backends.messages import Fields, Reply
from inferlane.errors import Reason, Refused
from inferlane.oip import Array, OipError, Tensor, decode_request, encode_reply

__all__ = ["Asked", "metadata_reply", "read_request", "write_reply"]

_JSON: Fields = ((b"content-type", b"application/json"),)
_BINARY: Fields = ((b"content-type", b"application/octet-stream"),)


class Asked(msgspec.Struct, frozen=True, eq=False):
    """What a request wants of the model."""

    request_id: str
    feeds: dict[str, Array]
    """By input name, ready for the model."""
    outputs: Sequence[str]
    binary: frozenset[str]
    """Outputs that the client wants as binary data."""

    @property
    def rows(self) -> int:
        """The first dimension, where the model has a batch axis."""
        return len(next(iter(self.feeds.values())))

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """Equal for requests that fit into one batch; their datatypes are the model's anyway."""
        return tuple(array.shape[1:] for array in self.feeds.values())


def read_request(
    body: bytes, json_length: int | None, signature: Signature, *, batched: bool = False, most_rows: int | None = None
) -> Asked:
    """Raises Refused, which names the tensor and what was expected.

    batched: rows of several requests run together, so their number matters; most_rows: more of them are refused.
    """
    try:
        request = decode_request(body, json_length)
        check_inputs(request.inputs, signature)
        check_outputs(request.outputs, signature)
        feeds = {spec.name: _feed(request.inputs[spec.name]) for spec in signature.inputs}
        if batched or most_rows is not None:
            _check_rows(feeds, most_rows)
    except OipError as error:
        raise _refused(error) from None
    if request.outputs:
        outputs = [each.name for each in request.outputs]
        binary = frozenset(each.name for each in request.outputs if each.binary)
    else:
        outputs = [spec.name for spec in signature.outputs]
        binary = frozenset(outputs if request.binary_outputs else ())
    return Asked(request.request_id, feeds, outputs, binary)


def write_reply(model: str, asked: Asked, outputs: Mapping[str, Array], compute_s: float) -> Reply:
    """Raises Refused where JSON was asked for and cannot carry an output."""
    ordered = {name: outputs[name] for name in asked.outputs}
    try:
        body, json_length = encode_reply(model, "1", ordered, request_id=asked.request_id, binary=asked.binary)
    except OipError as error:
        raise _refused(error) from None
    fields = _JSON if json_length is None else _BINARY
    return Reply(body=body, json_length=json_length, fields=fields, compute_s=compute_s)


def metadata_reply(model: str, signature: Signature) -> Reply:
    """The model's metadata."""
    return Reply(body=msgspec.json.encode(metadata(model, signature)), fields=_JSON)


def _refused(error: OipError) -> Refused:
    return Refused(Reason.INVALID_TENSOR if error.tensor else Reason.BAD_REQUEST, str(error))


def _feed(tensor: Tensor) -> Array:
    """The tensor as ONNX Runtime takes it: text as str (bytes it would spell out as "b'...'"), numbers aligned (it
    hands the pointer to vector code as it is)."""
    array = tensor.array
    if tensor.datatype == "BYTES":
        try:
            texts: list[Any] = [each.decode() for each in array.reshape(-1)]
        except UnicodeDecodeError:
            raise OipError(
                f"input {tensor.name!r} holds bytes that are not UTF-8; the model expects text", tensor=tensor.name
            ) from None
        return np.array(texts, dtype=object).reshape(array.shape)
    return array if array.flags.aligned else array.copy()


def _check_rows(feeds: Mapping[str, Array], most: int | None) -> None:
    """A batched model takes as many rows of one input as of another, and at least one."""
    counts = {name: len(array) for name, array in feeds.items()}
    first = next(iter(counts.values()))
    for name, count in counts.items():
        if count == 0:
            raise OipError(f"input {name!r} has no rows; the model expects at least one", tensor=name)
        if count != first:
            raise OipError(f"input {name!r} has {count} rows; the first input has {first}", tensor=name)
        if most is not None and count > most:
            raise OipError(f"input {name!r} has {count} rows; at most {most} (batch.max_size) run here", tensor=name)
