# SPDX-License-Identifier: Apache-2.0
"""The model behind an `onnx:` endpoint. The only door to onnxruntime: its sessions, providers and errors stop here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import structlog
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from backends.errors import BackendError
from backends.local.absent import REMEDY, installed_twice, load_nvidia_libraries
from backends.local.exchange import Asked, metadata_reply, read_request, write_reply
from backends.local.providers import PROVIDERS, Provider, execution_provider, pads, thread_count
from backends.local.signature import Signature, TensorSpec, why_not_batched
from backends.local.tensorrt_cache import engine_cache, user_cache
from backends.local.warm_up import warm_up
from backends.local.worker import Job, Worker
from backends.messages import Api, Reply, Request
from backends.settings import OnnxSettings
from inferlane.errors import Reason, Refused
from inferlane.oip import Array

__all__ = ["OnnxBackend"]

log = structlog.get_logger(__name__)

_SILENT = 4  # FATAL: everything less comes to us as an exception, or is seen in get_providers()
_MAX_JSON = 16 * 2**20  # parsing holds the interpreter's lock, at 18 to 60 MB/s (numbers of 2 to 11 characters)
_INLINE = 16 * 2**10  # bytes that cost the event loop less to parse or write than a thread's wake-up
_DETAIL = 300  # characters of ONNX Runtime's own words that a client gets

_DATATYPES = {
    "tensor(bool)": "BOOL",
    **{f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_MODEL_ERRORS = (
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
)


class OnnxBackend:
    """One model in this process, on one device.

    cache_dir: where TensorRT keeps its engines from one start to the next.
    """

    api = Api.OIP

    def __init__(self, settings: OnnxSettings, *, cache_dir: Path | None = None) -> None:
        self._settings = settings
        self._cache_dir = cache_dir or user_cache()
        self._serving: _Serving | None = None

    def __repr__(self) -> str:
        return f"<OnnxBackend {self._settings.onnx}, {self._serving.worker if self._serving else 'not started'}>"

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warm."""
        return self._serving is not None

    async def start(self) -> None:
        """Load the model and run it at every batch size that it will see."""
        settings = self._settings
        model = await asyncio.to_thread(_load, settings.onnx, settings.providers, self._cache_dir)
        if settings.batch.max_size > 1 and (reason := why_not_batched(model.signature)):
            raise BackendError(
                f"{settings.onnx}: batch.max_size is {settings.batch.max_size}, but {reason}; "
                "export the model with a free batch dimension, or leave batch.max_size at 1"
            )
        await asyncio.to_thread(warm_up, settings.onnx, model.signature, model.new_run, settings.batch.max_size)
        worker = Worker(
            settings.onnx.name,
            model.new_run,
            slots=settings.slots or 1,
            max_size=settings.batch.max_size,
            max_wait_s=settings.batch.max_wait,
            pads=model.padded,
        )
        worker.start()
        self._serving = _Serving(model, worker)

    async def infer(self, request: Request) -> Reply:
        """Answer one request, alone or in a batch with others."""
        serving = self._started(request.model, request.version)
        try:
            async with asyncio.timeout_at(request.deadline):
                reply = await self._answer(serving, request)
        except TimeoutError:
            raise Refused(Reason.DEADLINE, "the deadline passed before the model had answered") from None
        request.timeline.first_byte = time.monotonic()
        return reply

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """The model's inputs and outputs; known since the start, so the deadline does not matter."""
        return metadata_reply(model, self._started(model, version).model.signature)

    async def probe(self, *, deadline: float) -> None:
        """Known without asking: the model is here, or it is not loaded. Raises Refused where it is not."""
        if self._serving is None:
            raise Refused(Reason.NO_ENDPOINT, f"{self._settings.onnx} is not loaded")

    async def close(self) -> None:
        """Stop what runs and let go of the session."""
        serving, self._serving = self._serving, None
        if serving is not None:
            await serving.worker.close()

    def _started(self, name: str, version: str) -> _Serving:
        if self._serving is None:
            raise Refused(Reason.NO_ENDPOINT, f"model {name!r} is not loaded")
        if version not in ("", "1"):
            raise Refused(Reason.UNKNOWN_MODEL, f"model {name!r} has no version {version[:40]!r}; it has version 1")
        return self._serving

    async def _answer(self, serving: _Serving, request: Request) -> Reply:
        asked = await self._read(serving.model, request)
        batched = self._settings.batch.max_size > 1
        job = Job(
            rows=asked.rows if batched else 1,
            key=asked.key if batched else (),
            rank=request.traffic_class.rank,
            arrival=time.monotonic(),
            deadline=request.deadline,
            feeds=asked.feeds,
            outputs=asked.outputs,
            answer=asyncio.get_running_loop().create_future(),
        )
        answer = await serving.worker.submit(job)
        write = partial(write_reply, request.model, asked, answer.outputs, answer.compute_s)
        size = sum(array.nbytes for array in answer.outputs.values())
        return write() if size <= _INLINE else await asyncio.to_thread(write)

    async def _read(self, model: _Model, request: Request) -> Asked:
        body = await request.body.read_all()
        json_length = len(body) if request.json_length is None else min(request.json_length, len(body))
        if json_length > _MAX_JSON:
            raise Refused(
                Reason.TOO_LARGE,
                f"{json_length} bytes of JSON; at most {_MAX_JSON} are taken: send tensors as binary data",
            )
        max_size = self._settings.batch.max_size
        read = partial(
            read_request,
            body,
            request.json_length,
            model.signature,
            batched=max_size > 1,
            # A size beyond the buckets would have TensorRT build an engine while everybody waits.
            most_rows=max_size if model.padded else None,
        )
        return read() if len(body) <= _INLINE else await asyncio.to_thread(read)


class _Model:
    """A loaded model."""

    def __init__(self, path: Path, session: ort.InferenceSession, providers: Sequence[str]) -> None:
        self.signature = Signature(
            tuple(_spec(path, "input", each) for each in session.get_inputs()),
            tuple(_spec(path, "output", each) for each in session.get_outputs()),
        )
        self.padded = pads(providers) and why_not_batched(self.signature) is None
        """Whether batches are filled up to a bucket's size."""
        self._session = session

    def new_run(self) -> _SessionRun:
        """One run, not yet begun."""
        return _SessionRun(self._session)


@dataclass(frozen=True, slots=True)
class _Serving:
    """What a started backend has."""

    model: _Model
    worker: Worker


class _SessionRun:
    """One run of a session, with the switch that stops it."""

    __slots__ = ("_options", "_session")

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._options = ort.RunOptions()
        self._options.log_severity_level = _SILENT

    def __call__(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        try:
            arrays: list[Array] = self._session.run(outputs, feeds, self._options)
        except ort_errors.InvalidArgument as error:
            raise Refused(Reason.INVALID_TENSOR, f"the model does not take these values: {_brief(error)}") from None
        except Exception as error:  # noqa: BLE001  its exceptions have no class of their own in common
            raise Refused(Reason.BACKEND_FAILED, f"the model failed: {_brief(error)}") from None
        return arrays

    def stop(self) -> None:
        self._options.terminate = True  # ONNX Runtime looks at it before each node


def _load(path: Path, asked: Sequence[str], cache_dir: Path) -> _Model:
    """Read the model and open its session on the first of the asked providers that work."""
    if not path.is_file():
        raise BackendError(f"{path}: no such model file")
    if (twice := installed_twice()) is not None:
        log.warning("onnxruntime_installed_twice", detail=twice)
    engines = engine_cache(path, cache_dir) if "tensorrt" in asked else None
    wanted = [execution_provider(name, engines=engines) for name in asked]
    ort.set_default_logger_severity(_SILENT)
    failures = load_nvidia_libraries(asked, ort.preload_dlls)
    session, refused = _open(path, wanted)
    has = session.get_providers() if session else ()
    using = [name for name in asked if PROVIDERS[name] in has]
    missing = [name for name in asked if name not in using]
    reason = "; ".join(failures or refused) or "its libraries load, but no GPU and driver that they can use are there"
    if session is None or not using:
        raise BackendError(
            f"{path}: none of its providers ({', '.join(asked)}) works here: {reason}. To get them: {REMEDY}; "
            "to run without, add cpu to providers"
        )
    if missing:
        log.warning(
            "onnx_provider_missing",
            model=str(path), wanted=list(asked), missing=missing, using=using, reason=reason, remedy=REMEDY,
        )  # fmt: skip
    return _Model(path, session, using)


def _open(path: Path, providers: Sequence[Provider]) -> tuple[ort.InferenceSession | None, list[str]]:
    """A session on the first providers that can be, None where none can, and why the others cannot.

    ONNX Runtime would fall back by itself, but to the CPU at once, and printing.
    """
    refused: list[str] = []
    for first, provider in enumerate(providers):
        try:
            wanted = providers[first:]
            return ort.InferenceSession(str(path), _options(), providers=wanted, enable_fallback=0), refused
        except _MODEL_ERRORS as error:
            raise BackendError(
                f"{path}: not a model that ONNX Runtime {ort.__version__} takes: {_brief(error)}"
            ) from None
        except Exception as error:  # noqa: BLE001  as above
            if provider[0] == PROVIDERS["cpu"]:
                raise BackendError(f"{path}: ONNX Runtime {ort.__version__} cannot run it: {_brief(error)}") from None
            refused.append(_brief(error))
    return None, refused


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options.intra_op_num_threads = thread_count(cpus)
    # A spinning thread is fast between two runs and takes a core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(path: Path, kind: str, node: Any) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        raise BackendError(
            f"{path}: {kind} {node.name!r} is {node.type}, which the Open Inference Protocol cannot carry; "
            f"allowed: {', '.join(_DATATYPES)}"
        )
    # Exporters also write a free dimension as a negative number.
    return TensorSpec(
        node.name, datatype, tuple(None if isinstance(each, int) and each < 0 else each for each in node.shape)
    )


def _brief(error: Exception) -> str:
    """ONNX Runtime's own words, on one line and not too many."""
    return " ".join(str(error).split())[:_DETAIL]
