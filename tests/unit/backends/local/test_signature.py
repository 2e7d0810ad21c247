# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from backends.local.signature import (
    Signature,
    TensorSpec,
    check_inputs,
    check_outputs,
    metadata,
    why_not_batched,
)
from inferlane.oip import OipError, RequestedOutput, Tensor

MODEL = Signature(
    inputs=(TensorSpec("ids", "INT64", ("rows", "length")), TensorSpec("mask", "BOOL", ("rows", "length"))),
    outputs=(TensorSpec("label", "FP32", ("rows", 214)), TensorSpec("any", "FP32", ())),
)


def given_tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    datatypes = {"ids": "INT64", "mask": "BOOL"}
    return {name: Tensor(name, datatypes.get(name, "FP32"), shape, np.zeros(shape)) for name, shape in shapes.items()}


def test_tensors_that_fit_pass():
    check_inputs(given_tensors(mask=(2, 5), ids=(2, 5)), MODEL)


@pytest.mark.parametrize(
    ("inputs", "tensor", "message"),
    [
        (given_tensors(ids=(1, 2)), "", r"input 'mask' is missing; the model takes ids INT64 \[-1, -1\], mask BOOL"),
        (given_tensors(ids=(1, 2), mask=(1, 2), x=(1,)), "x", "input 'x' is not one of the model's, which takes ids"),
        (
            given_tensors(ids=(1, 2, 3), mask=(1, 2)),
            "ids",
            r"'ids' has shape \[1, 2, 3\]; the model expects \[-1, -1\]",
        ),
        (given_tensors(ids=(1, 2), mask=(1, 3)), "mask", r"'mask' has shape \[1, 3\], but dimension 'length' is 2"),
        (
            {**given_tensors(mask=(1, 2)), "ids": Tensor("ids", "INT32", (1, 2), np.zeros(1))},
            "ids",
            "'ids' has datatype INT32; the model expects INT64",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_what_was_expected(inputs, tensor, message):
    with pytest.raises(OipError, match=message) as raised:
        check_inputs(inputs, MODEL)
    assert raised.value.tensor == tensor


def test_a_fixed_dimension_is_kept():
    model = Signature((TensorSpec("x", "FP32", (None, 4)),), ())
    check_inputs(given_tensors(x=(9, 4)), model)
    with pytest.raises(OipError, match=r"'x' has shape \[9, 5\]; the model expects \[-1, 4\]"):
        check_inputs(given_tensors(x=(9, 5)), model)


def test_an_unknown_rank_takes_any_shape():
    check_inputs(given_tensors(x=(9, 4, 2)), Signature((TensorSpec("x", "FP32", ()),), ()))


def test_an_unknown_output_is_named_with_what_there_is():
    check_outputs([RequestedOutput("label", True)], MODEL)
    with pytest.raises(OipError, match=r"output 'lable' is not one of the model's, which gives label FP32 \[-1, 214\]"):
        check_outputs([RequestedOutput("lable", True)], MODEL)


def test_a_message_lists_few_of_many_tensors():
    many = Signature(tuple(TensorSpec(f"x{index}", "FP32", (1,)) for index in range(100)), ())
    with pytest.raises(OipError, match=r"x7 FP32 \[1\], ... \(100 in all\)"):
        check_inputs({}, many)


def test_metadata_are_the_protocol_s():
    assert metadata("magika", MODEL) == {
        "name": "magika",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "label", "datatype": "FP32", "shape": [-1, 214]},
            {"name": "any", "datatype": "FP32", "shape": []},
        ],
    }


def spec(*shape: int | str | None) -> TensorSpec:
    return TensorSpec("t", "FP32", shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ([spec("n", 4)], [spec("n", 2)], None),
        ([spec("n"), spec(None)], [spec("other")], None),
        ([spec(1, 4)], [spec("n", 2)], r"input t FP32 [1, 4] has no free first dimension"),
        ([spec("n", 4)], [spec(1, 2)], r"output t FP32 [1, 2] has no free first dimension"),
        ([spec()], [spec("n")], r"input t FP32 [] has no free first dimension"),
        ([spec("n"), spec("m")], [spec("n")], "the first dimensions of its inputs have different names: m, n"),
        ([], [spec("n")], "the model has no inputs"),
    ],
)
def test_a_batch_needs_one_free_first_dimension_everywhere(inputs, outputs, reason):
    assert why_not_batched(Signature(tuple(inputs), tuple(outputs))) == reason
