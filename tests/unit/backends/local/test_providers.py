# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import BackendError
from backends.local.providers import buckets, execution_provider, pads, thread_count


def test_the_cpu_needs_no_options():
    assert execution_provider("cpu", engines=None) == ("CPUExecutionProvider", {})


def test_cuda_does_not_search_algorithms_at_each_new_shape():
    name, options = execution_provider("cuda", engines=None)
    assert name == "CUDAExecutionProvider"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"


def test_tensorrt_keeps_its_engines_and_the_precision():
    name, options = execution_provider("tensorrt", engines=Path("/cache"))
    assert name == "TensorrtExecutionProvider"
    assert options == {
        "device_id": "0",
        "trt_fp16_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/cache",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/cache",
    }


def test_tensorrt_without_a_folder_keeps_nothing():
    assert not [key for key in execution_provider("tensorrt", engines=None)[1] if "cache" in key]


def test_an_unknown_provider_says_which_there_are():
    with pytest.raises(BackendError, match="unknown provider 'npu'; allowed: cpu, cuda, tensorrt"):
        execution_provider("npu", engines=None)


def test_only_tensorrt_pays_for_new_shapes():
    assert pads(["tensorrt", "cpu"])
    assert not pads(["cuda", "cpu"])


@pytest.mark.parametrize(
    ("max_size", "sizes"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12]), (3, [1, 2, 3])]
)
def test_buckets_double_up_to_the_largest(max_size, sizes):
    assert buckets(max_size) == sizes


@given(st.integers(1, 4096), st.data())
def test_every_number_of_rows_has_a_bucket_at_most_twice_as_large(max_size, data):
    rows = data.draw(st.integers(1, max_size))
    bucket = next(each for each in buckets(max_size) if each >= rows)
    assert bucket < 2 * rows


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 1), (16, 15)])
def test_the_event_loop_keeps_a_core(cpus, threads):
    assert thread_count(cpus) == threads
