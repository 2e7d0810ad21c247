# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backends.errors import BackendError
from backends.local.signature import Signature, TensorSpec
from backends.local.warm_up import blank, warm_up
from inferlane.errors import Reason, Refused
from tests.fakes.runs import FakeModel

PATH = Path("models/fake/model.onnx")
SIGNATURE = Signature((TensorSpec("x", "FP32", ("rows", "length", 3)),), (TensorSpec("y", "FP32", ("rows", 3)),))


@pytest.fixture
async def model():
    return FakeModel()


@pytest.mark.parametrize(("max_size", "sizes"), [(1, [1]), (8, [1, 8, 4, 2]), (6, [1, 6, 4, 2])])
async def test_every_bucket_is_run_the_extremes_first(model, max_size, sizes):
    warm_up(PATH, SIGNATURE, model.new_run, max_size)
    assert [feeds["x"].shape for feeds in model.feeds] == [(size, 1, 3) for size in sizes]


async def test_outputs_without_the_rows_cannot_be_batched(model):
    model.compute = lambda feeds: {"y": feeds["x"].sum(axis=0, keepdims=True)}
    warm_up(PATH, SIGNATURE, model.new_run, 1)
    with pytest.raises(BackendError, match=r"model\.onnx: output 'y' has shape \[1, 1, 3\] for 2 rows"):
        warm_up(PATH, SIGNATURE, model.new_run, 2)


async def test_a_model_that_takes_no_zeros_is_told_and_kept(model):
    def picky(feeds):
        raise Refused(Reason.INVALID_TENSOR, "no zeros please")

    model.compute = picky
    with capture_logs() as logs:
        warm_up(PATH, SIGNATURE, model.new_run, 4)
    assert logs == [
        {
            "event": "onnx_warm_up_failed",
            "log_level": "warning",
            "model": str(PATH),
            "rows": 1,
            "detail": "no zeros please",
        }
    ]


@pytest.mark.parametrize(
    ("spec", "shape", "kind"),
    [
        (TensorSpec("x", "INT64", (2, None)), (2, 1), "i"),
        (TensorSpec("x", "BOOL", (None,)), (7,), "b"),
        (TensorSpec("x", "BYTES", ("n", 2)), (7, 2), "O"),
        (TensorSpec("x", "FP16", ()), (), "f"),
    ],
)
def test_blank_input_has_the_model_s_shape(spec, shape, kind):
    array = blank(spec, 7)
    assert (array.shape, array.dtype.kind) == (shape, kind)
