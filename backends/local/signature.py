# SPDX-License-Identifier: Apache-2.0
"""What a model takes and gives, and whether a request's tensors fit it. Names the tensor and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferlane.oip import OipError, RequestedOutput, Tensor

__all__ = ["Signature", "TensorSpec", "check_inputs", "check_outputs", "metadata", "why_not_batched"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the model declares it."""

    name: str
    datatype: str
    shape: tuple[int | str | None, ...]
    """A number is fixed; a name is free, but the same wherever it stands; None is free. Empty: any rank, because
    ONNX Runtime tells a scalar and an unknown rank alike."""

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} [{', '.join(map(str, self.dims))}]"

    @property
    def dims(self) -> list[int]:
        """The shape in the protocol's words: -1 where it is free."""
        return [each if isinstance(each, int) else -1 for each in self.shape]


@dataclass(frozen=True, slots=True)
class Signature:
    """All inputs and outputs of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def check_inputs(inputs: Mapping[str, Tensor], signature: Signature) -> None:
    """Whether exactly the model's inputs are there, each with its datatype and shape."""
    named: dict[str, int] = {}
    for spec in signature.inputs:
        tensor = inputs.get(spec.name)
        if tensor is None:
            raise OipError(f"input {spec.name!r} is missing; the model takes {_listed(signature.inputs)}")
        if tensor.datatype != spec.datatype:
            raise _unfit(spec, f"has datatype {tensor.datatype}; the model expects {spec.datatype}")
        if spec.shape:
            _check_shape(spec, tensor.shape, named)
    if len(inputs) > len(signature.inputs):
        known = {spec.name for spec in signature.inputs}
        extra = next(name for name in inputs if name not in known)
        raise OipError(
            f"input {extra[:80]!r} is not one of the model's, which takes {_listed(signature.inputs)}", tensor=extra
        )


def check_outputs(outputs: Iterable[RequestedOutput], signature: Signature) -> None:
    """Whether the model has the outputs that are asked for."""
    known = {spec.name for spec in signature.outputs}
    for each in outputs:
        if each.name not in known:
            raise OipError(
                f"output {each.name[:80]!r} is not one of the model's, which gives {_listed(signature.outputs)}",
                tensor=each.name,
            )


def metadata(name: str, signature: Signature) -> dict[str, Any]:
    """The model's metadata object of the Open Inference Protocol."""
    return {
        "name": name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [_metadata_tensor(spec) for spec in signature.inputs],
        "outputs": [_metadata_tensor(spec) for spec in signature.outputs],
    }


def why_not_batched(signature: Signature) -> str | None:
    """Which tensor keeps requests from running as one batch; None: every first dimension is free and one."""
    if not signature.inputs:
        return "the model has no inputs"
    names = {spec.shape[0] for spec in signature.inputs if spec.shape} - {None}
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not spec.shape or isinstance(spec.shape[0], int):
                return f"{kind} {spec} has no free first dimension"
    if len(names) > 1:
        return f"the first dimensions of its inputs have different names: {', '.join(sorted(map(str, names)))}"
    return None


def _check_shape(spec: TensorSpec, shape: Sequence[int], named: dict[str, int]) -> None:
    if len(shape) != len(spec.shape):
        raise _unfit(spec, f"has shape {list(shape)}; the model expects {spec.dims}")
    for expected, each in zip(spec.shape, shape, strict=True):
        if isinstance(expected, int):
            if each != expected:
                raise _unfit(spec, f"has shape {list(shape)}; the model expects {spec.dims}")
        elif expected is not None and named.setdefault(expected, each) != each:
            raise _unfit(
                spec, f"has shape {list(shape)}, but dimension {expected!r} is {named[expected]} in another place"
            )


def _unfit(spec: TensorSpec, message: str) -> OipError:
    return OipError(f"input {spec.name!r} {message}", tensor=spec.name)


def _listed(specs: Sequence[TensorSpec]) -> str:
    """The tensors for a message; of very many only the first."""
    names = ", ".join(map(str, specs[:8]))
    return names if len(specs) <= 8 else f"{names}, ... ({len(specs)} in all)"


def _metadata_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.dims}
