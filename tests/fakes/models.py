# SPDX-License-Identifier: Apache-2.0
"""Tiny ONNX models for every shape of problem, as bytes. Old enough in IR and opset for any onnxruntime we allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Shape = Sequence[int | str | None]

IR_VERSION = 8
OPSET = 17
TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def identity(datatype: str = "FP32", shape: Shape = ("rows", 4)) -> bytes:
    """x -> y, the same."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", datatype, shape)], [value("y", datatype, shape)]
    )


def linear(inputs: int = 8, outputs: int = 5) -> bytes:
    """x FP32 [rows, inputs] -> y = x W + b and z = relu(y), FP32 [rows, outputs]."""
    rng = np.random.default_rng(7)
    weights = numpy_helper.from_array(rng.standard_normal((inputs, outputs), np.float32), "w")
    bias = numpy_helper.from_array(rng.standard_normal(outputs, np.float32), "b")
    return model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        [value("x", "FP32", ("rows", inputs))],
        [value("y", "FP32", ("rows", outputs)), value("z", "FP32", ("rows", outputs))],
        [weights, bias],
    )


def two_inputs() -> bytes:
    """left and right FP32 [rows, 3] -> sum."""
    shape = ("rows", 3)
    return model(
        [helper.make_node("Add", ["left", "right"], ["sum"])],
        [value("left", "FP32", shape), value("right", "FP32", shape)],
        [value("sum", "FP32", shape)],
    )


def lookup() -> bytes:
    """index INT64 [rows] -> value FP32 [rows] out of three; fails on an index beyond them."""
    table = numpy_helper.from_array(np.array([10, 20, 30], np.float32), "table")
    return model(
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        [value("index", "INT64", ("rows",))],
        [value("value", "FP32", ("rows",))],
        [table],
    )


def places() -> bytes:
    """x FP32 [rows, 2] -> y INT64 [count, 2]: where x is not zero; its rows are not x's, so it cannot be batched."""
    return model(
        [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Transpose", ["at"], ["y"])],
        [value("x", "FP32", ("rows", 2))],
        [value("y", "INT64", ("count", 2))],
    )


def doubling() -> bytes:
    """times INT64 [1] and x FP32 [1] -> y = x doubled so often; with a huge number it runs until it is stopped."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["doubled"])],
        "body",
        [value("i", "INT64", ()), value("go", "BOOL", ()), value("v", "FP32", (1,))],
        [value("go_on", "BOOL", ()), value("doubled", "FP32", (1,))],
    )
    return model(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        [value("times", "INT64", (1,)), value("x", "FP32", (1,))],
        [value("y", "FP32", (1,))],
    )


def slow_to_warm_up() -> bytes:
    """x FP32 [rows, 4] -> y = x + a count that takes far longer than any test."""
    one, times = numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.array([1 << 62]), "times")
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "one"], ["more"])],
        "body",
        [value("i", "INT64", ()), value("go", "BOOL", ()), value("v", "FP32", ())],
        [value("go_on", "BOOL", ()), value("more", "FP32", ())],
    )
    shape = ("rows", 4)
    return model(
        [
            helper.make_node("Loop", ["times", "", "one"], ["count"], body=body),
            helper.make_node("Add", ["x", "count"], ["y"]),
        ],
        [value("x", "FP32", shape)],
        [value("y", "FP32", shape)],
        [one, times],
    )


def sequence() -> bytes:
    """x -> a sequence, which no tensor protocol carries."""
    return model(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [value("x", "FP32", (1,))],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Sequence[TensorProto] = (),
) -> bytes:
    """A model of these nodes."""
    graph: GraphProto = helper.make_graph(list(nodes), "fake", list(inputs), list(outputs), list(weights))
    opset = helper.make_opsetid("", OPSET)
    made: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()
    return made


def value(name: str, datatype: str, shape: Shape) -> ValueInfoProto:
    """One input or output; None is a dimension without a name."""
    return helper.make_tensor_value_info(name, TYPES[datatype], list(shape))


def saved(model: bytes, folder: Path, name: str = "model.onnx") -> Path:
    """The model as a file."""
    path = folder / name
    path.write_bytes(model)
    return path
