# SPDX-License-Identifier: Apache-2.0
"""The models' process: the same answers and refusals as a model in this process, to the bit; and its deaths."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.backend import Backend
from backends.build import build
from backends.errors import BackendError
from backends.messages import Reply, Request
from backends.pool_settings import PoolSettings
from inferlane.errors import Reason, Refused
from inferlane.oip import DATATYPES
from proxy.supervise.channel import channel_pair
from proxy.supervise.models import FIRST_PAUSE_S, LONGEST_PAUSE_S, Models, pause_s
from qos.settings import BUILT_IN_CLASSES
from tests.fakes import models
from tests.fakes.asking_models import asked, request_of
from tests.fakes.fleet import until

PATIENCE_S = 60.0
RNG = np.random.default_rng(3)


def pool_of(folder: Path, **files: bytes) -> PoolSettings:
    endpoints = []
    for name, data in files.items():
        (folder / f"{name}.onnx").write_bytes(data)
        endpoints.append({"onnx": str(folder / f"{name}.onnx")})
    return PoolSettings.model_validate({"name": "p", "model": "*", "endpoints": tuple(endpoints)})


def models_for(pool: PoolSettings, state_dir: Path) -> Models:
    return Models([pool], BUILT_IN_CLASSES, state_dir=state_dir, max_body=64 << 20, log_format="json")


async def outcome(backend: Backend, request: Request) -> object:
    """All of a reply or a refusal that a client can tell."""
    try:
        reply = await backend.infer(request)
    except Refused as refused:
        return refused.reason, refused.detail, refused.status, refused.retry_after_s
    return told(reply, await whole(reply))


async def whole(reply: Reply) -> bytes:
    return reply.body if isinstance(reply.body, bytes) else b"".join([piece async for piece in reply.body])


def told(reply: Reply, body: bytes) -> object:
    return reply.status, body, reply.json_length, reply.fields, reply.backend_queue_s, reply.compute_s is not None


class Pair:
    """The same models here and in the process, by their number."""

    def __init__(self, here: list[Backend], there: list[Backend]) -> None:
        self.here, self.there = here, there

    async def same(self, number: int, request: Callable[[], Request]) -> object:
        ours = await outcome(self.here[number], request())
        assert await outcome(self.there[number], request()) == ours
        return ours


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory) -> PoolSettings:
    folder = tmp_path_factory.mktemp("models")
    files = {name.lower(): models.identity(name, ("rows", 2)) for name in DATATYPES}
    return pool_of(folder, **files, linear=models.linear())


@pytest.fixture
async def pair(all_of_them, tmp_path) -> AsyncIterator[Pair]:
    running = models_for(all_of_them, tmp_path)
    await running.start()
    (here,), (there,) = build([all_of_them]).pools, build([all_of_them], running.sockets).pools
    assert [each.name for each in here.endpoints] == [each.name for each in there.endpoints]
    assert [each.slots for each in here.endpoints] == [each.slots for each in there.endpoints]
    await here.start()
    await there.start()
    yield Pair([each.backend for each in here.endpoints], [each.backend for each in there.endpoints])
    await here.close()
    await there.close()
    await running.close()
    assert list(tmp_path.iterdir()) == []


def samples(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([["", "é"], ["abc", "z" * 300]], object)
    return np.array([[0, 1], [1, 0]], DATATYPES[datatype])


async def test_every_datatype_and_every_refusal_is_the_same_to_the_bit(pair):
    for number, datatype in enumerate(DATATYPES):
        for binary in (True, False):
            if datatype == "FP16" and not binary:
                continue  # the protocol has no JSON for it
            x = samples(datatype)
            answer = await pair.same(number, lambda x=x, binary=binary: request_of({"x": x}, binary=binary))
            assert answer[0] == 200
    linear = len(DATATYPES)
    large = RNG.standard_normal((20_000, 8), np.float32)  # in pieces both ways
    assert (await pair.same(linear, lambda: request_of({"x": large})))[0] == 200
    wrong = await pair.same(linear, lambda: request_of({"x": np.ones((2, 9), np.float32)}))
    assert wrong[0] is Reason.INVALID_TENSOR
    assert (await pair.same(linear, lambda: asked(b"{nonsense")))[0] is Reason.BAD_REQUEST
    unknown = await pair.same(linear, lambda: asked(b'{"inputs":[]}', version="7"))
    assert unknown[0] is Reason.UNKNOWN_MODEL
    assert (await pair.same(linear, lambda: asked(b'{"inputs":[{"name":"q"}]}')))[0] is not Reason.INTERNAL


async def test_metadata_has_the_client_s_name(pair):
    here = await pair.here[-1].metadata("my model/7", "1", deadline=time.monotonic() + 9)
    there = await pair.there[-1].metadata("my model/7", "1", deadline=time.monotonic() + 9)
    assert told(here, await whole(here)) == told(there, await whole(there))
    assert json.loads(await whole(there))["name"] == "my model/7"
    with pytest.raises(Refused) as refused:
        await pair.there[-1].metadata("m", "2", deadline=time.monotonic() + 9)
    assert refused.value.reason is Reason.UNKNOWN_MODEL


async def test_it_is_started_again_at_the_same_sockets_and_ends_with_its_parent(tmp_path):
    state = tmp_path / "state"
    pool = pool_of(tmp_path, linear=models.linear())
    running = models_for(pool, state)
    await running.start()
    (folder,) = state.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    (endpoint,) = build([pool], running.sockets).pools[0].endpoints
    await endpoint.backend.start()
    request = {"x": np.ones((1, 8), np.float32)}
    first = await outcome(endpoint.backend, request_of(request))
    before = running.pid
    assert before is not None and running.missing() == []
    os.kill(before, signal.SIGKILL)
    await until(lambda: running.missing() == ["models"])
    down = await outcome(endpoint.backend, request_of(request))
    assert down[:1] == (Reason.BACKEND_FAILED,) and down[2] == 503
    await until(lambda: running.missing() == [])
    assert running.pid != before and running.restarts == 1
    assert await outcome(endpoint.backend, request_of(request)) == first
    assert [each.name for each in await asyncio.to_thread(lambda: list(state.iterdir()))] == [folder.name]
    await endpoint.backend.close()
    await running.close()
    assert list(state.iterdir()) == [] and running.pid is None


@pytest.mark.parametrize("lacking", ["proxy.supervise.worker_process.channel_pair", "os.pidfd_open"])
async def test_it_comes_back_though_descriptors_had_run_out(tmp_path, monkeypatch, lacking):
    running = models_for(pool_of(tmp_path, linear=models.linear()), tmp_path / "state")
    await running.start()
    has = channel_pair if "channel" in lacking else os.pidfd_open
    tried: list[int] = []

    def runs_out(*arguments: Any) -> Any:
        tried.extend(arguments or [0])
        if len(tried) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return has(*arguments)

    monkeypatch.setattr(lacking, runs_out)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    await until(lambda: running.missing() == [] and running.restarts == 2)
    if "pidfd" in lacking:  # nobody waits for that one, so it must be gone, and not be left as a zombie
        assert not await asyncio.to_thread(Path(f"/proc/{tried[0]}").exists)
    await running.close()


async def test_one_that_hangs_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("proxy.supervise.generation.WATCH_S", 0.1)
    monkeypatch.setattr("proxy.supervise.generation.HUNG_S", 0.5)
    running = models_for(pool_of(tmp_path, linear=models.linear()), tmp_path / "state")
    await running.start()
    pid = running.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: running.pid not in (None, pid) and running.missing() == [])
    await running.close()


async def test_it_ends_when_its_parent_is_gone(tmp_path):
    running = models_for(pool_of(tmp_path, linear=models.linear()), tmp_path / "state")
    await running.start()
    child = running.links()[0]
    assert running._watching is not None
    running._watching.cancel()
    await child._channel.close()  # as the kernel does for a parent that was killed
    assert await asyncio.wait_for(child.exit_code(), PATIENCE_S) == 0
    assert list((tmp_path / "state").iterdir()) == []  # nobody else knows of the directory any more
    await running.close()


async def test_a_model_that_cannot_be_loaded_is_told_and_leaves_nothing(tmp_path):
    pool = pool_of(tmp_path, broken=b"no model")
    running = models_for(pool, tmp_path / "state")
    with pytest.raises(BackendError, match=r"pool p, endpoint onnx:.*broken\.onnx: .*not a model") as refused:
        await running.start()
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "state").iterdir()) == []


async def test_a_long_way_to_the_state_directory_is_no_reason_to_fail(tmp_path):
    deep = tmp_path / ("d" * 90)
    running = models_for(pool_of(tmp_path, linear=models.linear()), deep)
    await running.start()
    (path,) = running.sockets.values()
    assert path.is_socket() and deep not in path.parents
    await running.close()
    assert not path.parent.exists()


async def test_nothing_is_started_for_pools_that_are_elsewhere(tmp_path):
    pool = PoolSettings.model_validate({"name": "p", "model": "*", "endpoints": ({"oip": "http://127.0.0.1:1"},)})
    running = models_for(pool, tmp_path)
    await running.start()
    assert (running.needed, running.pid, running.sockets, running.missing()) == (False, None, {}, [])
    assert list(tmp_path.iterdir()) == []
    await running.close()


async def test_another_program_goes_on_with_it(tmp_path):
    pool = pool_of(tmp_path, linear=models.linear())
    first = models_for(pool, tmp_path / "state")
    await first.start()
    handed = first.handed()
    assert handed is not None and os.get_inheritable(handed.child.channel.fd)
    child = first.links()[0]
    second = models_for(pool, tmp_path / "state")
    # As after an exec: the first program is no more, and nothing of it was closed.
    assert first._watching is not None
    first._watching.cancel()
    asyncio.get_running_loop().remove_reader(child._pidfd)
    os.close(child._pidfd)
    assert child._channel._transport is not None
    child._channel._transport.pause_reading()
    await asyncio.gather(first._watching, return_exceptions=True)
    channel = msgspec.structs.replace(handed.child.channel, fd=os.dup(handed.child.channel.fd))
    await second.adopt(
        type(handed)(child=msgspec.structs.replace(handed.child, channel=channel), folder=handed.folder, restarts=3)
    )
    assert (second.pid, second.sockets, second.missing(), second.restarts) == (child.pid, first.sockets, [], 3)
    (link,) = second.links()
    assert {each[0] for each in await link.ask("metrics", timeout_s=PATIENCE_S)} >= {"process_cpu_seconds"}
    second.use_classes(BUILT_IN_CLASSES[:2])
    await second.close()
    assert not await asyncio.to_thread(Path(handed.folder).exists)
    await child._channel.close()


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_pauses_grow_and_are_bounded(failures: int, rng: random.Random) -> None:
    assert 0.75 * FIRST_PAUSE_S <= pause_s(failures, rng) <= 1.25 * LONGEST_PAUSE_S
