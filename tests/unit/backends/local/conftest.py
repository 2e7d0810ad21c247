# SPDX-License-Identifier: Apache-2.0
"""What the tests of local models share: requests, and backends that are closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.body import Body
from backends.local.onnx import OnnxBackend
from backends.messages import Request
from backends.settings import BatchSettings, OnnxSettings
from inferlane.oip import encode_request
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass
from tests.fakes import models

RequestOf = Callable[..., Request]
Started = Callable[..., Awaitable[OnnxBackend]]


@pytest.fixture
def request_of() -> RequestOf:
    """Builds a request for a local model out of arrays, or of a body as it is."""

    def build(
        content: Mapping[str, np.ndarray] | bytes,
        json_length: int | None = None,
        *,
        rank: int = 0,
        timeout_s: float = 60.0,
        version: str = "",
        **options: Any,
    ) -> Request:
        body = content
        if not isinstance(body, bytes):
            body, json_length = encode_request(content, **options)
        now = asyncio.get_running_loop().time()
        return Request(
            request_id="1",
            model="fake",
            version=version,
            traffic_class=TrafficClass(name="any", rank=rank, dscp=0, deadline_s=60.0, queue_s=1.0),
            deadline=now + timeout_s,
            body=Body.of(body),
            json_length=json_length,
            timeline=Timeline(received=now),
        )

    return build


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    """Starts backends on models given as bytes."""
    backends: list[OnnxBackend] = []

    async def start(model: bytes, *, max_size: int = 1, max_wait: float = 0.0, **options: Any) -> OnnxBackend:
        settings = OnnxSettings.model_construct(
            onnx=models.saved(model, tmp_path, f"{len(backends)}.onnx"),
            providers=options.get("providers", ("cpu",)),
            batch=BatchSettings.model_construct(max_size=max_size, max_wait=max_wait),
            slots=options.get("slots"),
        )
        backend = OnnxBackend(settings, cache_dir=tmp_path)
        backends.append(backend)
        await backend.start()
        return backend

    yield start
    for backend in backends:
        await backend.close()
