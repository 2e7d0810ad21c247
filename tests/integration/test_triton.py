# SPDX-License-Identifier: Apache-2.0
"""Triton's own client: against `inferlane serve` over HTTP/1.1, and its request bodies over HTTP/3 to a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import curl_cffi
import numpy as np
import pytest
from curl_cffi import CurlHttpVersion
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from inferlane.oip import DATATYPES
from tests.fakes.models import linear

TEXT = [b"", b"a\0b", "né 中 😀".encode(), b"z" * 300]


def sample(datatype: str) -> np.ndarray:
    """Two rows of two, every value at home in the datatype."""
    if datatype == "BYTES":
        return np.array(TEXT, object).reshape(2, 2)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    dtype = DATATYPES[datatype]
    if dtype.kind == "f":
        return np.array([[0, -1.5], [np.nan, np.inf]], dtype)
    return np.array([[0, 1], [np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """To the bit, NaN included."""
    if left.dtype == object:
        return left.tolist() == right.tolist()
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.fixture
def client(model_server) -> Iterator[InferenceServerClient]:
    """Connected to `serve`."""
    with InferenceServerClient(model_server.http) as connected:
        yield connected


def test_health_and_metadata(client, model_folder):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("linear") and client.is_model_ready("linear", "1")
    assert not client.is_model_ready("unheard-of")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    told = client.get_model_metadata("identity-fp16")
    assert told["inputs"] == [{"name": "x", "datatype": "FP16", "shape": [-1, -1]}]
    index = client.get_model_repository_index()
    assert {each["name"] for each in index} == {each.name for each in model_folder.iterdir()}
    assert {each["state"] for each in index} == {"READY"}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_tensors_both_ways(client, datatype):
    x = sample(datatype)
    answer = client.infer(f"identity-{datatype.lower()}", [tensor("x", x, datatype)])
    assert same(answer.as_numpy("y"), x)


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BOOL", "BYTES"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_json_and_binary_mixed(client, datatype, binary_in, binary_out):
    x = np.array([["a", "né"]], object) if datatype == "BYTES" else np.array([[1, 0]], DATATYPES[datatype])
    answer = client.infer(
        f"identity-{datatype.lower()}",
        [tensor("x", x, datatype, binary=binary_in)],
        outputs=[InferRequestedOutput("y", binary_data=binary_out)],
    )
    got = answer.as_numpy("y")
    if datatype == "BYTES":  # Triton's client gives text as it came: bytes from binary, str from JSON
        assert [each.decode() if binary_out else each for each in got.reshape(-1)] == ["a", "né"]
    else:
        assert same(got, x)


def test_the_outputs_that_were_asked_for_and_onnxruntime_s_bits(client, directly):
    x = np.random.default_rng(5).standard_normal((3, 8), np.float32)
    answer = client.infer("linear", [tensor("x", x, "FP32")], outputs=[InferRequestedOutput("z")], request_id="t-1")
    told = answer.get_response()
    assert [each["name"] for each in told["outputs"]] == ["z"] and told["id"] == "t-1"
    assert same(answer.as_numpy("z"), directly(linear(), {"x": x})["z"])


def test_several_at_once(model_server):
    arrays = [np.full((1, 8), index, np.float32) for index in range(8)]
    with InferenceServerClient(model_server.http, concurrency=4) as client:
        asked = [client.async_infer("identity-fp32", [tensor("x", each, "FP32")]) for each in arrays]
        assert all(same(one.get_result().as_numpy("y"), each) for one, each in zip(asked, arrays, strict=True))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_is_refused_in_words_and_need_not_be_given(client, algorithm):
    x = np.ones((1, 8), np.float32)
    with pytest.raises(InferenceServerException, match="content-encoding"):
        client.infer("linear", [tensor("x", x, "FP32")], request_compression_algorithm=algorithm)
    answer = client.infer("identity-fp32", [tensor("x", x, "FP32")], response_compression_algorithm=algorithm)
    assert same(answer.as_numpy("y"), x)


def test_the_client_prints_what_was_wrong(client):
    with pytest.raises(InferenceServerException, match="unheard-of"):
        client.infer("unheard-of", [tensor("x", np.ones((1, 8), np.float32), "FP32")])
    with pytest.raises(InferenceServerException, match=r"input 'x'.*expects \[-1, 8\]"):
        client.infer("linear", [tensor("x", np.ones((1, 9), np.float32), "FP32")])


class Posting:
    """Triton's bodies on libcurl's HTTP/3."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self.session = curl_cffi.Session(http_version=CurlHttpVersion.V3ONLY, verify=str(gateway.ca))

    def infer(self, model: str, *tensors: InferInput, outputs: list[InferRequestedOutput] | None = None) -> InferResult:
        body, json_length = InferenceServerClient.generate_request_body(list(tensors), outputs=outputs)
        fields = {} if json_length is None else {"Inference-Header-Content-Length": str(json_length)}
        url = f"{self._gateway.url()}/v2/models/{model}/infer"
        answer = self.session.post(url, data=body, headers=fields, timeout=60)
        assert answer.status_code == 200, answer.text
        length = answer.headers.get("inference-header-content-length")
        return InferenceServerClient.parse_response_body(
            answer.content, header_length=None if length is None else int(length)
        )


@pytest.fixture
def posting(gateway) -> Iterator[Posting]:
    made = Posting(gateway)
    with made.session:
        yield made


@pytest.mark.parametrize("datatype", DATATYPES)
def test_its_binary_bodies_over_http3(posting, datatype):
    x = sample(datatype)
    assert same(posting.infer(f"identity-{datatype.lower()}", tensor("x", x, datatype)).as_numpy("y"), x)


def test_its_json_body_over_http3(posting, directly):
    x = np.random.default_rng(6).standard_normal((2, 8), np.float32)
    outputs = [InferRequestedOutput("y", binary_data=False), InferRequestedOutput("z", binary_data=True)]
    answer = posting.infer("linear", tensor("x", x, "FP32", binary=False), outputs=outputs)
    expected = directly(linear(), {"x": x})
    assert same(answer.as_numpy("y"), expected["y"]) and same(answer.as_numpy("z"), expected["z"])
