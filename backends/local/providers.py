# SPDX-License-Identifier: Apache-2.0
"""Provider names as the config knows them -> ONNX Runtime's names and options. Pure; speaks no ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from backends.errors import BackendError

__all__ = ["PROVIDERS", "Provider", "buckets", "execution_provider", "pads", "thread_count"]

Provider = tuple[str, dict[str, str]]
"""ONNX Runtime's name of a provider, and its options."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def execution_provider(name: str, *, engines: Path | None) -> Provider:
    """One provider with options that keep answers the model's own and first runs short.

    engines: where TensorRT keeps what it builds; None: nowhere.
    """
    if name == "cuda":
        # The default, EXHAUSTIVE, times every algorithm at each new shape: hundreds of milliseconds a batch size
        # (onnxruntime #19838). Growing by what is asked leaves the device's memory to its other users.
        options = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
        return PROVIDERS[name], {"device_id": "0", **options}
    if name == "tensorrt":
        # Precision is the exporter's decision, not ours.
        options = {"device_id": "0", "trt_fp16_enable": "False"}
        for cache in ("engine", "timing") if engines is not None else ():
            options |= {f"trt_{cache}_cache_enable": "True", f"trt_{cache}_cache_path": str(engines)}
        return PROVIDERS[name], options
    if name == "cpu":
        return PROVIDERS[name], {}
    raise BackendError(f"unknown provider {name!r}; allowed: {', '.join(PROVIDERS)}")


def pads(providers: Sequence[str]) -> bool:
    """Whether batches are padded to a bucket: TensorRT builds an engine for new shapes, which takes seconds to
    minutes. The others run any number of rows as it is, so there padding would only cost."""
    return "tensorrt" in providers


def buckets(max_size: int) -> list[int]:
    """The batch sizes 1, 2, 4... max_size."""
    sizes = [1]
    while sizes[-1] < max_size:
        sizes.append(min(2 * sizes[-1], max_size))
    return sizes


def thread_count(cpus: int) -> int:
    """Threads for one model on the CPU: all but the one that the event loop needs.

    A number, because ONNX Runtime's own choice (0) counts the machine's cores and pins threads to them, which fails
    loudly inside a container's CPU set.
    """
    return max(1, cpus - 1)
