# SPDX-License-Identifier: Apache-2.0
"""`inferlane serve`: which models a path holds, and real clients that nobody here wrote against its doors."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from itertools import product
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnxruntime import InferenceSession
from tritonclient.utils import InferenceServerException

from backends.errors import BackendError
from backends.settings import BatchSettings
from inferlane.client import Client
from proxy.config.settings import Bind
from proxy.serve import LONGEST_S, ModelServer, find_models, pools_of, trusting_policy
from qos.classify import classify
from tests.fakes.models import identity, linear
from tests.fakes.walk import arrival

ANYWHERE = Bind("127.0.0.1", 0)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(identity())


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/model.onnx", "b/1/model.onnx", "c.onnx"], {"a", "b", "c"}),
        (["a/model.onnx", "a/config.pbtxt", "notes.txt", "data/1/weights.bin"], {"a"}),
        (["a/model.onnx", ".cache/model.onnx", "deep/er/model.onnx"], {"a"}),
    ],
)
def test_a_directory_of_models(tmp_path: Path, files, names):
    put(tmp_path, *files)
    found = find_models(tmp_path)
    assert found.keys() == names
    assert all(file.suffix == ".onnx" and file.is_file() for file in found.values())


@pytest.mark.parametrize(
    ("file", "name"), [("digits.onnx", "digits"), ("digits/model.onnx", "digits"), ("digits/1/model.onnx", "digits")]
)
def test_one_file(tmp_path: Path, file, name):
    put(tmp_path, file)
    assert find_models(tmp_path / file) == {name: tmp_path / file}


def test_a_model_s_own_directory(tmp_path: Path):
    put(tmp_path, "digits/model.onnx")
    assert find_models(tmp_path / "digits") == {"digits": tmp_path / "digits" / "model.onnx"}


@pytest.mark.parametrize(
    ("files", "path", "complaint"),
    [
        ([], "nowhere", "nowhere: no such file or directory"),
        (["readme.md"], "readme.md", "readme.md: not a .onnx file"),
        (["readme.md"], "", "no models; expected NAME/model.onnx, NAME/1/model.onnx or NAME.onnx there"),
        (["a.onnx", "a/model.onnx"], "", "two models have the name a: .*a.onnx and .*a/model.onnx; rename one"),
        (["a/model.onnx", "a/1/model.onnx"], "", "two models have the name a"),
        (["a/1/model.onnx", "a/2/model.onnx"], "", "a/2/model.onnx: only version 1 of a model is served"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, files, path, complaint):
    put(tmp_path, *files)
    with pytest.raises(BackendError, match=complaint) as raised:
        find_models(tmp_path / path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "providers", "complaint"),
    [("a b", ["cpu"], "'a b' is not a name"), ("a", ["npu"], "npu"), ("a", [], "at least 1")],
)
def test_settings_that_cannot_be_are_one_line(name, providers, complaint):
    with pytest.raises(BackendError, match=complaint) as raised:
        pools_of({name: Path("/models/a.onnx")}, providers=providers)
    assert "\n" not in str(raised.value)


def test_every_pool_gets_the_settings():
    pools = pools_of(
        {"a": Path("/a.onnx"), "b": Path("/b.onnx")}, providers=["cuda", "cpu"], batch=BatchSettings(max_size=8)
    )
    assert [pool.name for pool in pools] == ["a", "b"]
    assert {(pool.endpoints[0].providers, pool.endpoints[0].batch.max_size) for pool in pools} == {(("cuda", "cpu"), 8)}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ModelServer]:
    models = tmp_path / "models"
    models.mkdir()
    for name, model in {
        "linear": linear(),
        "text": identity("BYTES", ("n",)),
        "half": identity("FP16", ("n", 3)),
    }.items():
        (models / f"{name}.onnx").write_bytes(model)
    server = ModelServer(pools_of(find_models(models)), http=ANYWHERE, udp=ANYWHERE, socket=tmp_path / "socket")
    await server.start()
    yield server
    await server.close()


def address(server: ModelServer) -> str:
    return "{}:{}".format(*server.http)


async def test_tritonclient_finds_its_way(server):
    def look() -> None:
        with triton.InferenceServerClient(address(server)) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("linear")
            assert client.is_model_ready("linear", "1")
            assert client.get_server_metadata()["name"] == "inferlane"
            assert client.get_model_metadata("half")["inputs"] == [{"name": "x", "datatype": "FP16", "shape": [-1, 3]}]
            index = client.get_model_repository_index()
            assert sorted(each["name"] for each in index) == ["half", "linear", "text"]
            assert {each["state"] for each in index} == {"READY"}

    await asyncio.to_thread(look)


TENSORS = {
    "linear": np.arange(16, dtype=np.float32).reshape(2, 8),
    "half": np.array([[1.5, -2.0, 65504.0]], np.float16),
    "text": np.array([b"", "größe".encode(), b"\0" * 300], np.object_),
}
ANSWER = InferenceSession(linear()).run(["y"], {"x": TENSORS["linear"]})[0]


def tensor(name: str, array: np.ndarray, *, binary: bool) -> triton.InferInput:
    datatype = {"linear": "FP32", "half": "FP16", "text": "BYTES"}[name]
    asked = triton.InferInput("x", list(array.shape), datatype)
    asked.set_data_from_numpy(array, binary_data=binary)
    return asked


# tritonclient sends and reads FP16 as binary data only.
@pytest.mark.parametrize(
    ("name", "ask_binary", "answer_binary"),
    [
        ("half", True, True),
        *((name, *each) for name in ("linear", "text") for each in product([True, False], repeat=2)),
    ],
)
async def test_tritonclient_infers_with_binary_tensors_and_without(server, name, ask_binary, answer_binary):
    def infer() -> triton.InferResult:
        with triton.InferenceServerClient(address(server)) as client:
            asked = [tensor(name, TENSORS[name], binary=ask_binary)]
            outputs = [triton.InferRequestedOutput("y", binary_data=answer_binary)]
            return client.infer(name, asked, outputs=outputs, request_id="r-1", timeout=5_000_000)

    result = await asyncio.to_thread(infer)
    assert result.get_response()["id"] == "r-1"
    answer = result.as_numpy("y")
    if name == "linear":
        assert answer.tobytes() == ANSWER.tobytes()
    elif name == "text":
        assert [each if isinstance(each, bytes) else each.encode() for each in answer] == list(TENSORS["text"])
    else:
        assert answer.tobytes() == TENSORS["half"].tobytes()


async def test_tritonclient_s_asyncio_half(server):
    async with triton_aio.InferenceServerClient(address(server)) as client:
        result = await client.infer("half", [tensor("half", TENSORS["half"], binary=True)])
    assert result.as_numpy("y").tobytes() == TENSORS["half"].tobytes()


async def test_a_body_that_tritonclient_compresses_is_refused_with_the_remedy(server):
    def infer() -> None:
        with triton.InferenceServerClient(address(server)) as client:
            asked = [tensor("linear", TENSORS["linear"], binary=True)]
            client.infer("linear", asked, request_compression_algorithm="gzip")

    with pytest.raises(InferenceServerException, match="send the body without content-encoding"):
        await asyncio.to_thread(infer)


async def test_tritonclient_shows_what_a_refusal_says(server):
    def infer() -> None:
        with triton.InferenceServerClient(address(server)) as client:
            client.infer("half", [tensor("linear", TENSORS["linear"], binary=True)])

    with pytest.raises(InferenceServerException, match="x"):
        await asyncio.to_thread(infer)


async def post(server: ModelServer, model: str, **fields: str) -> tuple[int, Mapping[str, str], dict[str, object]]:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [1] * 8}]}
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    url = f"http://{address(server)}/v2/models/{model}/infer"
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as reply:
        return reply.status, reply.headers, await reply.json(content_type=None)


async def test_the_model_s_own_time_is_told(server):
    status, fields, _ = await post(server, "linear")
    assert status == 200
    assert re.search(r"compute;dur=\d+\.\d+", fields["server-timing"])


async def test_the_gateway_s_class_is_believed_and_its_time_kept(server):
    _, fields, _ = await post(server, "linear", Inferlane_Class="background")
    assert fields["inferlane-class"] == "background"
    status, _, problem = await post(server, "linear", Inferlane_Timeout="1us")
    assert (status, problem["reason"]) == (504, "deadline")


@pytest.mark.parametrize("listener", ["http", "udp"])
@pytest.mark.parametrize(
    ("asked", "served"), [("realtime", "realtime"), ("gold", "interactive"), (None, "interactive")]
)
def test_no_class_caps_the_time_that_a_gateway_gives(listener, asked, served):
    verdict = classify(arrival(listener=listener, client="2001:db8::1", asked_class=asked), trusting_policy())
    assert verdict.traffic_class.name == served
    assert verdict.traffic_class.deadline_s == verdict.traffic_class.queue_s == LONGEST_S


async def test_an_unknown_model_is_said(server):
    status, _, problem = await post(server, "nobody")
    assert (status, problem["reason"]) == (404, "unknown_model")


async def test_inference_datagrams(server):
    async with Client("udp://{}:{}".format(*server.udp)) as client:
        reply = await client.infer("half", {"x": TENSORS["half"]}, cls="batch", timeout=5.0)
    assert reply.outputs["y"].tobytes() == TENSORS["half"].tobytes()
    assert reply.served_class == "batch"
    assert reply.timing.compute is not None


async def test_http_over_the_unix_socket(server, tmp_path: Path):
    connector = aiohttp.UnixConnector(str(tmp_path / "socket"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://here/v2") as reply:
        assert (await reply.json())["name"] == "inferlane"
    await server.close()
    assert not (tmp_path / "socket").exists()


async def test_draining_refuses_what_is_new(server):
    async with aiohttp.ClientSession() as session:
        url = f"http://{address(server)}/v2/health/ready"
        async with session.get(url) as reply:
            assert reply.status == 200
        await server.drain()
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url)
    assert "draining" in repr(server)


@pytest.mark.parametrize("taken", ["tcp", "udp"])
async def test_a_taken_port_is_one_line_and_leaves_nothing_open(tmp_path: Path, taken):
    put(tmp_path, "a.onnx")
    kind = socket.SOCK_STREAM if taken == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as first:
        first.bind(("127.0.0.1", 0))
        if taken == "tcp":
            first.listen()
        busy = Bind(*first.getsockname())
        http, udp = (busy, ANYWHERE) if taken == "tcp" else (ANYWHERE, busy)
        server = ModelServer(pools_of(find_models(tmp_path)), http=http, udp=udp, socket=tmp_path / "socket")
        with pytest.raises(OSError, match=f"cannot listen on {taken} 127.0.0.1:{busy.port}: Address already in use"):
            await server.start()
    assert not (tmp_path / "socket").exists()
    await server.close()


async def test_a_model_that_is_none_is_one_line(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    server = ModelServer(pools_of(find_models(tmp_path)), http=ANYWHERE, udp=ANYWHERE)
    with pytest.raises(BackendError, match=r"a\.onnx: not a model"):
        await server.start()


def test_sigterm_finishes_and_exits_with_0(tmp_path: Path):
    put(tmp_path, "a.onnx")
    command = [sys.executable, "-m", "proxy", "serve", str(tmp_path), "--http", "127.0.0.1:0", "--udp", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        serving = json.loads(process.stderr.readline())
        assert serving["event"] == "serving"
        assert serving["models"] == ["a"]
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stderr]
        assert process.wait(timeout=30) == 0
    assert [line["event"] for line in lines] == ["drained"]
