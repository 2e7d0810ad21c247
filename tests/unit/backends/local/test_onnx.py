# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from structlog.testing import capture_logs

from backends.body import Body
from backends.errors import BackendError
from backends.local.onnx import OnnxBackend
from backends.local.providers import execution_provider
from backends.settings import OnnxSettings
from inferlane.errors import Reason, Refused
from inferlane.oip import DATATYPES, ReplyBody, decode_reply
from tests.fakes import models

HAS_GPU = Path("/dev/nvidiactl").exists()
FOREVER = {"times": np.array([10**15]), "x": np.ones(1, np.float32)}
TWICE = {"times": np.array([2]), "x": np.ones(1, np.float32)}


def direct(model: bytes, feeds, providers=("CPUExecutionProvider",)) -> dict[str, np.ndarray]:
    """What onnxruntime itself answers."""
    session = ort.InferenceSession(model, providers=list(providers))
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))


async def answer(backend: OnnxBackend, request) -> ReplyBody:
    reply = await backend.infer(request)
    assert isinstance(reply.body, bytes)
    return decode_reply(reply.body, reply.json_length)


async def refusal(backend: OnnxBackend, request) -> Refused:
    with pytest.raises(Refused) as raised:
        await backend.infer(request)
    return raised.value


def samples(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([["", "é"], ["abc", "z" * 300]], object)
    return np.array([[0, 1], [1, 0]], DATATYPES[datatype])


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_goes_through_as_binary_data(started, request_of, datatype):
    backend = await started(models.identity(datatype, ("rows", 2)))
    x = samples(datatype)
    reply = await answer(backend, request_of({"x": x}))
    assert [each.decode() if isinstance(each, bytes) else each for each in reply.outputs["y"].reshape(-1).tolist()] == (
        x.reshape(-1).tolist()
    )
    assert reply.outputs["y"].shape == x.shape


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "FP16"])
async def test_every_datatype_but_fp16_goes_through_as_json(started, request_of, datatype):
    backend = await started(models.identity(datatype, ("rows", 2)))
    x = samples(datatype)
    reply = await backend.infer(request_of({"x": x}, binary=False))
    assert json.loads(reply.body)["outputs"][0]["data"] == x.reshape(-1).tolist()
    assert reply.fields == ((b"content-type", b"application/json"),)


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_can_be_batched(started, request_of, datatype):
    backend = await started(models.identity(datatype, ("rows", 2)), max_size=4, max_wait=1000.0)
    x = samples(datatype)
    replies = await asyncio.gather(*(answer(backend, request_of({"x": each})) for each in (x, x[::-1])))
    expected = [x.tolist(), x[::-1].tolist()]
    if datatype == "BYTES":
        expected = [[[each.encode() for each in row] for row in rows] for rows in expected]
    assert [reply.outputs["y"].tolist() for reply in replies] == expected


async def test_an_answer_is_onnxruntime_s_to_the_bit(started, request_of):
    model = models.linear()
    backend = await started(model)
    x = np.random.default_rng(1).standard_normal((3, 8), np.float32)
    reply = await answer(backend, request_of({"x": x}))
    expected = direct(model, {"x": x})
    assert {name: each.tobytes() for name, each in reply.outputs.items()} == {
        name: each.tobytes() for name, each in expected.items()
    }
    assert (reply.model, reply.version) == ("fake", "1")


async def test_a_batch_s_answers_are_onnxruntime_s_on_the_same_batch_to_the_bit(started, request_of):
    model = models.linear()
    backend = await started(model, max_size=6, max_wait=1000.0)
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((rows, 8), np.float32) for rows in (1, 3, 2)]
    replies = await asyncio.gather(*(answer(backend, request_of({"x": x})) for x in inputs))
    expected = direct(model, {"x": np.concatenate(inputs)})
    for name in ("y", "z"):
        assert np.concatenate([reply.outputs[name] for reply in replies]).tobytes() == expected[name].tobytes()


async def test_a_request_with_more_rows_than_a_batch_runs_alone(started, request_of):
    model = models.linear()
    backend = await started(model, max_size=2)
    x = np.ones((5, 8), np.float32)
    reply = await answer(backend, request_of({"x": x}))
    assert reply.outputs["y"].tobytes() == direct(model, {"x": x})["y"].tobytes()


async def test_large_bodies_go_through_threads_and_come_back_whole(started, request_of):
    backend = await started(models.identity("FP32", ("rows", 5000)))
    x = np.random.default_rng(1).random((3, 5000), np.float32)
    for binary in (True, False):
        reply = await answer(backend, request_of({"x": x}, binary=binary))
        assert reply.outputs["y"].tobytes() == x.tobytes()


async def test_the_times_are_told(started, request_of):
    backend = await started(models.linear())
    request = request_of({"x": np.ones((1, 8), np.float32)})
    reply = await backend.infer(request)
    assert reply.compute_s is not None
    assert 0 < reply.compute_s < request.timeline.first_byte - request.timeline.received


async def test_one_output_of_two_may_be_asked_for(started, request_of):
    backend = await started(models.linear())
    reply = await answer(backend, request_of({"x": np.ones((1, 8), np.float32)}, outputs=["z"]))
    assert list(reply.outputs) == ["z"]


def body_of(**changes: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changes
    return json.dumps({"inputs": [{name: each for name, each in tensor.items() if each is not None}]}).encode()


BINARY = {"data": None, "parameters": {"binary_data_size": 16}}


@pytest.mark.parametrize(
    ("body", "binary", "message"),
    [
        (body_of(name="y"), None, r"input 'x' is missing; the model takes x FP32 \[-1, 4\]"),
        (body_of(datatype="FP64"), None, "input 'x' has datatype FP64; the model expects FP32"),
        (body_of(shape=[4]), None, r"input 'x' has shape \[4\]; the model expects \[-1, 4\]"),
        (body_of(shape=[2, 2]), None, r"input 'x' has shape \[2, 2\]; the model expects \[-1, 4\]"),
        (body_of(shape=[-1, -4]), None, r"input 'x': shape \[-1, -4\] has a negative dimension"),
        (body_of(shape=[2**62, 2**62]), None, r"input 'x': shape .* overflows"),
        (body_of(shape=[2**40, 4]), None, r"input 'x': shape .* takes 4398046511104 elements, but data has 4"),
        (body_of(data=[1, 2, 3, None]), None, "input 'x': data: Expected `float`, got `null`"),
        (body_of(data=None), None, "input 'x': neither data nor parameters.binary_data_size"),
        (body_of(**BINARY), b"\0" * 15, "input 'x': binary_data_size is 16, but only 15 bytes"),
        (body_of(**BINARY), b"\0" * 17, "1 bytes follow the data of the last tensor"),
        (body_of(**BINARY), None, "input 'x': .*Inference-Header-Content-Length"),
        (body_of().replace(b"4]}", b"NaN]}"), None, "malformed"),
        (b"[" * 100_000, None, "Expected `object`"),
        (b'{"a":' * 100_000, None, "nested too deeply"),
        (b"", None, "truncated"),
    ],
)
async def test_bad_input_is_a_4xx_that_says_what_was_expected(started, request_of, body, binary, message):
    backend = await started(models.identity("FP32", ("rows", 4)))
    json_length = None if binary is None else len(body)
    refused = await refusal(backend, request_of(body + (binary or b""), json_length))
    assert refused.status == 400
    with pytest.raises(Refused, match=message):
        raise refused
    assert await answer(backend, request_of({"x": np.ones((1, 4), np.float32)}))


@pytest.mark.parametrize("json_length", [-1, 0, 10**9])
async def test_a_json_length_that_lies_is_a_bad_request(started, request_of, json_length):
    backend = await started(models.identity())
    refused = await refusal(backend, request_of(body_of(), json_length))
    assert refused.reason is Reason.BAD_REQUEST
    assert f"the JSON length is {json_length}, but the body has" in refused.detail


async def test_inputs_that_share_a_dimension_must_agree(started, request_of):
    backend = await started(models.two_inputs())
    left, right = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32)
    refused = await refusal(backend, request_of({"left": left, "right": right}))
    assert refused.detail == "input 'right' has shape [3, 3], but dimension 'rows' is 2 in another place"
    refused = await refusal(backend, request_of({"left": left}))
    assert refused.detail == "input 'right' is missing; the model takes left FP32 [-1, 3], right FP32 [-1, 3]"


async def test_values_that_the_model_rejects_are_the_client_s_fault_alone(started, request_of, capfd):
    backend = await started(models.lookup(), max_size=2, max_wait=1000.0)
    good, bad = await asyncio.gather(
        answer(backend, request_of({"index": np.array([2])})),
        refusal(backend, request_of({"index": np.array([7])})),
    )
    assert good.outputs["value"].tolist() == [30.0]
    assert bad.reason is Reason.INVALID_TENSOR
    assert "out of data bounds, idx=7" in bad.detail
    assert capfd.readouterr() == ("", "")


async def test_an_output_that_json_cannot_carry_says_how_to_ask_for_it(started, request_of):
    backend = await started(models.identity("FP32", ("rows", 4)))
    body = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}},
            ]
        }
    ).encode()
    refused = await refusal(backend, request_of(body + np.full(4, np.nan, "<f4").tobytes(), len(body)))
    assert refused.status == 400
    assert "output 'y': NaN and infinity have no JSON form" in refused.detail
    assert "parameters.binary_data: true" in refused.detail


async def test_too_much_json_is_told_to_be_binary(started, request_of, monkeypatch):
    monkeypatch.setattr("backends.local.onnx._MAX_JSON", 100)
    backend = await started(models.identity("UINT8", ("rows", 1000)))
    x = np.zeros((1, 1000), np.uint8)
    refused = await refusal(backend, request_of({"x": x}, binary=False))
    assert refused.reason is Reason.TOO_LARGE
    assert "send tensors as binary data" in refused.detail


async def test_a_passed_deadline_stops_the_run(started, request_of):
    backend = await started(models.doubling())
    refused = await refusal(backend, request_of(FOREVER, timeout_s=0.05))
    assert refused.reason is Reason.DEADLINE
    assert (await answer(backend, request_of(TWICE))).outputs["y"].tolist() == [4.0]


async def test_a_client_that_goes_away_stops_the_run(started, request_of):
    backend = await started(models.doubling())
    task = asyncio.create_task(backend.infer(request_of(FOREVER)))
    while "1 of 1 busy" not in repr(backend):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await answer(backend, request_of(TWICE))).outputs["y"].tolist() == [4.0]


async def test_closing_stops_the_run_and_refuses_what_comes(started, request_of):
    backend = await started(models.doubling())
    assert backend.ready
    task = asyncio.create_task(backend.infer(request_of(FOREVER)))
    while "1 of 1 busy" not in repr(backend):
        await asyncio.sleep(0)
    await backend.close()
    assert not backend.ready
    with pytest.raises(Refused, match="unloaded"):
        await task
    refused = await refusal(backend, request_of(TWICE))
    assert (refused.reason, refused.detail) == (Reason.NO_ENDPOINT, "model 'fake' is not loaded")


async def test_a_body_that_breaks_off_is_refused_for_its_own_reason(started, request_of):
    backend = await started(models.identity())
    request = request_of(b"")
    request.body = Body(limit=10)
    request.body.feed(b"x" * 11, ended=False)
    assert (await refusal(backend, request)).reason is Reason.TOO_LARGE


async def test_a_body_that_does_not_end_meets_the_deadline(started, request_of):
    backend = await started(models.identity())
    request = request_of(b"", timeout_s=0.02)
    request.body = Body(limit=10)
    assert (await refusal(backend, request)).reason is Reason.DEADLINE


@pytest.mark.parametrize("version", ["", "1"])
async def test_metadata_and_answers_are_version_1_s(started, request_of, version):
    backend = await started(models.identity("INT8", (None, 4)))
    reply = await backend.metadata("other-name", version, deadline=0.0)
    assert json.loads(reply.body) == {
        "name": "other-name",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "INT8", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "INT8", "shape": [-1, 4]}],
    }
    assert (await answer(backend, request_of({"x": np.ones((1, 4), np.int8)}, version=version))).version == "1"


async def test_another_version_is_unknown(started, request_of):
    backend = await started(models.identity())
    refused = await refusal(backend, request_of({"x": np.ones((1, 4), np.float32)}, version="2"))
    assert refused.reason is Reason.UNKNOWN_MODEL
    assert refused.detail == "model 'fake' has no version '2'; it has version 1"
    with pytest.raises(Refused):
        await backend.metadata("fake", "2", deadline=0.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"not a model at all", r"0\.onnx: not a model that ONNX Runtime .* takes: .*INVALID_PROTOBUF"),
        (b"", r"0\.onnx: not a model that ONNX Runtime .* takes: .*No graph was found"),
        (models.identity()[:40], r"0\.onnx: not a model that ONNX Runtime"),
        (models.sequence(), r"output 'y' is seq\(tensor\(float\)\), which the Open Inference Protocol cannot carry"),
        (models.identity("BF16"), r"input 'x' is tensor\(bfloat16\), which the Open Inference Protocol cannot carry"),
    ],
)
async def test_what_is_no_model_for_us_is_told_in_one_line(started, model, message, capfd):
    with pytest.raises(BackendError, match=message) as raised:
        await started(model)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


async def test_a_missing_model_is_named(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        backend = OnnxBackend(OnnxSettings.model_construct(onnx=path, providers=("cpu",)))
        with pytest.raises(BackendError, match=f"{path}: no such model file"):
            await backend.start()
        assert not backend.ready
        assert repr(backend) == f"<OnnxBackend {path}, not started>"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            models.identity("FP32", (1, 4)),
            r"batch.max_size is 2, but input x FP32 \[1, 4\] has no free first dimension",
        ),
        (models.places(), r"output 'y' has shape \[0, 2\] for 1 rows, so requests cannot be batched"),
    ],
)
async def test_a_model_that_cannot_be_batched_is_told_at_the_start(started, model, message):
    with pytest.raises(BackendError, match=message):
        await started(model, max_size=2)
    assert (await started(model)).ready


async def test_an_unknown_provider_is_told(started):
    with pytest.raises(BackendError, match="unknown provider 'npu'; allowed: cpu, cuda, tensorrt"):
        await started(models.identity(), providers=("npu",))


@pytest.mark.skipif(HAS_GPU, reason="this machine has the providers")
async def test_a_provider_that_is_not_there_is_one_warning_and_the_next_is_used(started, request_of, capfd):
    with capture_logs() as logs:
        backend = await started(models.identity(), providers=("tensorrt", "cuda", "cpu"))
    (warning,) = logs
    assert warning["event"] == "onnx_provider_missing"
    assert (warning["wanted"], warning["missing"], warning["using"]) == (
        ["tensorrt", "cuda", "cpu"],
        ["tensorrt", "cuda"],
        ["cpu"],
    )
    assert "cannot load lib" in warning["reason"]
    assert "'.[gpu]'" in warning["remedy"]
    assert capfd.readouterr() == ("", "")
    assert await answer(backend, request_of({"x": np.ones((1, 4), np.float32)}))


@pytest.mark.skipif(HAS_GPU, reason="this machine has the providers")
@pytest.mark.parametrize("providers", [("cuda",), ("tensorrt", "cuda"), ("tensorrt",)])
async def test_the_cpu_is_not_used_unless_it_was_asked_for(started, providers, capfd):
    with pytest.raises(BackendError, match=r"none of its providers .* add cpu to providers") as raised:
        await started(models.identity(), providers=providers)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


async def test_two_installed_distributions_are_told(started, monkeypatch):
    monkeypatch.setattr("backends.local.onnx.installed_twice", lambda: "both are installed")
    with capture_logs() as logs:
        await started(models.identity())
    assert [(entry["event"], entry["detail"]) for entry in logs] == [
        ("onnxruntime_installed_twice", "both are installed")
    ]


async def test_a_probe_fails_once_the_model_is_unloaded(started):
    backend = await started(models.identity())
    await backend.probe(deadline=0.0)
    await backend.close()
    with pytest.raises(Refused, match="not loaded"):
        await backend.probe(deadline=0.0)


@pytest.mark.needs_gpu
async def test_cuda_answers_as_onnxruntime_s_own_cuda(started, request_of):
    model = models.linear()
    backend = await started(model, providers=("cuda",))
    x = np.random.default_rng(1).standard_normal((3, 8), np.float32)
    reply = await answer(backend, request_of({"x": x}))
    expected = direct(model, {"x": x}, [execution_provider("cuda", engines=None)])
    assert reply.outputs["y"].tobytes() == expected["y"].tobytes()
