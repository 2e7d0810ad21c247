# SPDX-License-Identifier: Apache-2.0
"""What the models' process does between its first word and its last, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from backends.pool_settings import PoolSettings
from backends.remote.served import ServedModel
from proxy.supervise.channel import Channel, channel_pair
from proxy.supervise.models_child import Child
from proxy.supervise.models_start import Class, ModelsStart, classes_of, models_of
from proxy.telemetry import logs
from qos.settings import BUILT_IN_CLASSES
from tests.fakes import models
from tests.fakes.asking_models import request_of
from tests.fakes.fleet import PATIENCE_S


class Parent:
    """The other end, and what it was told."""

    def __init__(self, channel: Channel, child: Child, running: asyncio.Task[int]) -> None:
        self.channel, self.child, self.running = channel, child, running
        self.logs: list[tuple[object, ...]] = []
        self.ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel.told |= {"ready": self.ready.set_result, "failed": self.ready.set_result}

    async def start(self, folder: Path, model: bytes) -> Any:
        (folder / "m.onnx").write_bytes(model)
        endpoint = {"onnx": str(folder / "m.onnx")}
        pool = PoolSettings.model_validate({"name": "p", "model": "*", "endpoints": (endpoint,)})
        start = ModelsStart(
            models=models_of([pool], folder), classes=classes_of(BUILT_IN_CLASSES), max_body=1 << 20, name="models 0.0"
        )
        self.channel.tell("start", msgspec.to_builtins(start))
        return await asyncio.wait_for(self.ready, PATIENCE_S)


@pytest.fixture
async def parent(monkeypatch) -> AsyncIterator[Parent]:
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(logs, "configure", lambda *how, worker: told.append((*how, worker)))  # this process has its own
    ours, theirs = channel_pair()
    channel, its = Channel(ours), Channel(theirs)
    child = Child(its)
    await its.start()
    await channel.start()
    asked = Parent(channel, child, asyncio.create_task(child.run()))
    asked.logs = told
    yield asked
    await channel.close()
    await asyncio.wait_for(asked.running, PATIENCE_S)


async def test_it_answers_under_any_name_and_with_other_classes_until_nobody_is_there(parent, tmp_path):
    assert await parent.start(tmp_path, models.linear()) is None
    backend = ServedModel(tmp_path / "0.sock", slots=1)
    for name in ("m", "a/b ü", "x" * 255):
        reply = await backend.infer(request_of({"x": np.ones((1, 8), np.float32)}, model=name, binary=False))
        assert msgspec.json.decode(reply.body)["model_name"] == name
    others = [Class(name="new", dscp=0, deadline_s=1.0, default=True)]
    parent.channel.tell("classes", msgspec.to_builtins(others))
    assert await backend.infer(request_of({"x": np.ones((1, 8), np.float32)}))
    metadata = await backend.metadata("mine", "", deadline=time.monotonic() + PATIENCE_S)
    assert msgspec.json.decode(metadata.body)["name"] == "mine"
    assert await parent.channel.ask("metrics", timeout_s=PATIENCE_S)
    await backend.close()
    await parent.channel.close()
    assert await asyncio.wait_for(parent.running, PATIENCE_S) == 0
    assert not (tmp_path / "0.sock").exists()


async def test_classes_that_change_while_it_starts_are_the_ones_it_has(parent, tmp_path):
    """The supervisor does not wait for it: both messages may come at once."""
    others = [Class(name="new", dscp=0, deadline_s=1.0, default=True)]
    starting = asyncio.create_task(parent.start(tmp_path, models.linear()))
    await asyncio.sleep(0)
    parent.channel.tell("classes", msgspec.to_builtins(others))
    parent.channel.tell("log_format", "console")
    assert await starting is None
    (server,) = parent.child._servers
    assert [each.name for each in server.pipeline.policy.classes] == ["new"]
    assert parent.logs[-1] == ("console", "warning", "models 0.0")


async def test_a_model_that_is_none_is_told_and_ends_it(parent, tmp_path):
    assert "not a model that ONNX Runtime" in await parent.start(tmp_path, b"nothing")
    assert await asyncio.wait_for(parent.running, PATIENCE_S) == 1
