# SPDX-License-Identifier: Apache-2.0
"""HTTP/3 clients that nobody here wrote: libcurl on ngtcp2 (curl_cffi), and niquests on qh3."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import curl_cffi
import niquests
import numpy as np
import pytest
from curl_cffi import CurlHttpVersion

from tests.fakes.meeting import Meeting, meeting
from tests.fakes.models import linear
from tests.fakes.programs import GatewayProgram, until

MIB = 1 << 20
X = np.arange(16, dtype=np.float32).reshape(2, 8)
JSON_TENSOR = {"name": "x", "datatype": "FP32", "shape": [2, 8], "data": X.reshape(-1).tolist()}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client made of it."""

    status: int
    fields: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Curl:
    """libcurl, HTTP/3 only."""

    def __init__(self, gateway: GatewayProgram) -> None:
        self.gateway = gateway
        self.session = curl_cffi.Session(http_version=CurlHttpVersion.V3ONLY, verify=str(gateway.ca))

    def ask(self, method: str, path: str, *, body: bytes | None = None, fields: Mapping[str, str] = {}) -> Answer:
        answer = self.session.request(method, self.gateway.url() + path, data=body, headers=dict(fields), timeout=60)
        assert answer.http_version == CurlHttpVersion.V3
        return Answer(answer.status_code, answer.headers, answer.content)


class Niquests:
    """niquests, all but HTTP/3 disabled."""

    def __init__(self, gateway: GatewayProgram) -> None:
        self.gateway = gateway
        self.session = niquests.Session(disable_http1=True, disable_http2=True)
        self.session.verify = str(gateway.ca)
        self.session.trust_env = False  # REQUESTS_CA_BUNDLE would go before it

    def ask(self, method: str, path: str, *, body: bytes | None = None, fields: Mapping[str, str] = {}) -> Answer:
        answer = self.session.request(method, self.gateway.url() + path, data=body, headers=dict(fields), timeout=60)
        assert answer.http_version == 30
        return Answer(answer.status_code, answer.headers, answer.content or b"")


Client = Curl | Niquests


@contextmanager
def connections_counted(gateway: GatewayProgram) -> Iterator[list[float]]:
    """How many QUIC handshakes the block took."""
    before, counted = gateway.metric("inferlane_quic_handshakes_total"), []
    yield counted
    counted.append(gateway.metric("inferlane_quic_handshakes_total") - before)


@pytest.fixture(params=[Curl, Niquests])
def client(request, gateway) -> Iterator[Client]:
    """Each of them, on a connection of its own."""
    made = request.param(gateway)
    with made.session:
        yield made


def binary_request(name: str, array: np.ndarray, datatype: str) -> tuple[bytes, dict[str, str]]:
    """A body by the binary extension's text, without our codec; and its field."""
    data = array.tobytes()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def binary_outputs(answer: Answer, dtype: type) -> dict[str, np.ndarray]:
    """The outputs behind the JSON of a reply."""
    at = int(answer.fields["inference-header-content-length"])
    outputs = {}
    for each in json.loads(answer.body[:at])["outputs"]:
        size = each["parameters"]["binary_data_size"]
        outputs[each["name"]] = np.frombuffer(answer.body[at : at + size], dtype).reshape(each["shape"])
        at += size
    assert at == len(answer.body)
    return outputs


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/linear/ready", {"ready": True}),
        ("/v2/models/linear/versions/1/ready", {"ready": True}),
    ],
)
def test_health(client, path, said):
    answer = client.ask("GET", path)
    assert (answer.status, answer.json()) == (200, said)


def test_metadata_of_the_server_and_of_a_model(client):
    assert client.ask("GET", "/v2").json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/models/linear", "/v2/models/linear/versions/1"):
        told = client.ask("GET", path).json()
        assert told["name"] == "linear" and told["versions"] == ["1"]
        assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
        assert [each["name"] for each in told["outputs"]] == ["y", "z"]


def test_head_has_the_fields_of_get_and_no_body(client):
    answer, got = client.ask("HEAD", "/v2"), client.ask("GET", "/v2")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.fields["content-type"] == got.fields["content-type"] == "application/json"


def test_json_in_and_out_gives_onnxruntime_s_numbers(client, directly):
    answer = client.ask("POST", "/v2/models/linear/infer", body=json.dumps({"inputs": [JSON_TENSOR]}).encode())
    assert answer.status == 200 and answer.fields["content-type"] == "application/json"
    outputs = {each["name"]: np.array(each["data"], np.float32) for each in answer.json()["outputs"]}
    for name, expected in directly(linear(), {"x": X}).items():
        assert outputs[name].tobytes() == expected.tobytes()


def test_binary_in_and_out_gives_onnxruntime_s_bits(client, directly):
    body, fields = binary_request("x", X, "FP32")
    answer = client.ask("POST", "/v2/models/linear/infer", body=body, fields=fields)
    assert answer.status == 200 and answer.fields["content-type"] == "application/octet-stream"
    outputs = binary_outputs(answer, np.float32)
    for name, expected in directly(linear(), {"x": X}).items():
        assert outputs[name].tobytes() == expected.tobytes()


def test_five_megabytes_there_and_back(client):
    x = np.random.default_rng(3).integers(0, 256, (5, MIB), np.uint8)
    body, fields = binary_request("x", x, "UINT8")
    answer = client.ask("POST", "/v2/models/identity-uint8/infer", body=body, fields=fields)
    assert answer.status == 200
    assert binary_outputs(answer, np.uint8)["y"].tobytes() == x.tobytes()


def test_the_class_that_was_asked_for_and_where_the_time_went(client):
    answer = client.ask(
        "POST",
        "/v2/models/linear/infer",
        body=json.dumps({"inputs": [JSON_TENSOR]}).encode(),
        fields={"Inferlane-Class": "realtime", "X-Request-Id": "asked-1"},
    )
    assert answer.fields["inferlane-class"] == "realtime" and answer.fields["x-request-id"] == "asked-1"
    assert [part.split(";")[0].strip() for part in answer.fields["server-timing"].split(",")] == [
        "network",
        "queue",
        "backend",
        "compute",
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason", "says"),
    [
        ("GET", "/v1/nothing", None, 404, "not_found", "/v1/chat/completions"),
        ("GET", "/v2/models/unheard-of", None, 404, "unknown_model", "unheard-of"),
        ("POST", "/v2/models/unheard-of/infer", b"{}", 404, "unknown_model", "unheard-of"),
        ("DELETE", "/v2/models/linear", None, 405, "method_not_allowed", "GET"),
        ("POST", "/v2/models/linear/infer", b"{", 400, "bad_request", "JSON"),
        ("POST", "/v2/models/linear/infer", {"name": "q"}, 400, "bad_request", "'x' is missing"),
        ("POST", "/v2/models/linear/infer", {"shape": [2, 9]}, 400, "invalid_tensor", "'x'"),
        ("POST", "/v2/models/linear/infer", {"shape": [-1, 8]}, 400, "invalid_tensor", "'x'"),
        ("POST", "/v2/models/linear/infer", {"datatype": "INT32"}, 400, "invalid_tensor", "'x'"),
        ("POST", "/v2/models/linear/infer", bytes(9 * MIB), 413, "too_large", "8388608"),
    ],
)
def test_a_refusal_is_a_problem_document_and_the_connection_goes_on(client, method, path, body, status, reason, says):
    if isinstance(body, dict):
        body = json.dumps({"inputs": [JSON_TENSOR | body]}).encode()
    assert client.ask("GET", "/v2/health/live").status == 200
    with connections_counted(client.gateway) as counted:
        answer = client.ask(method, path, body=body)
        assert client.ask("GET", "/v2/health/live").status == 200
    assert counted == [0]
    assert answer.status == status and answer.fields["content-type"] == "application/problem+json"
    document = answer.json()
    assert (document["status"], document["reason"]) == (status, reason)
    assert says in document["detail"] and document["request_id"] == answer.fields["x-request-id"]


@pytest.fixture
def upstream() -> Iterator[Meeting]:
    with meeting(guests=8) as opened:
        yield opened


@pytest.fixture
def forwarding(upstream, start_gateway) -> GatewayProgram:
    """A gateway in front of the meeting."""
    return start_gateway(f"{{oip: 'http://127.0.0.1:{upstream.port}'}}")


def bodies(upstream: Meeting) -> list[bytes]:
    return [b'{"inputs":[],"id":"%d"}' % index for index in range(upstream.guests)]


async def test_curl_s_requests_are_in_flight_together_on_one_connection(forwarding, upstream):
    address = forwarding.url()
    async with curl_cffi.AsyncSession(http_version=CurlHttpVersion.V3ONLY, verify=str(forwarding.ca)) as session:
        await session.get(f"{address}/v2")  # later requests find a connection that can take them
        asking = [session.post(f"{address}/v2/models/meeting/infer", data=each) for each in bodies(upstream)]
        answers = await asyncio.gather(*asking)
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, each) for each in bodies(upstream)]
    assert forwarding.metric("inferlane_quic_handshakes_total") == 1


def test_niquests_requests_are_in_flight_together_on_one_connection(forwarding, upstream):
    address = forwarding.url()
    with niquests.Session(disable_http1=True, disable_http2=True, multiplexed=True) as session:
        session.verify, session.trust_env = str(forwarding.ca), False
        answers = [session.post(f"{address}/v2/models/meeting/infer", data=each) for each in bodies(upstream)]
        session.gather()
        assert [(each.status_code, each.content) for each in answers] == [(200, each) for each in bodies(upstream)]
    assert forwarding.metric("inferlane_quic_handshakes_total") == 1


def test_a_body_that_grows_past_the_cap_is_refused_while_it_comes(gateway):
    with Niquests(gateway).session as session:
        address = f"{gateway.url()}/v2/models/linear/infer"
        answer = session.post(address, data=(bytes(MIB) for _ in range(12)))
        assert (answer.status_code, answer.json()["reason"]) == (413, "too_large")


async def test_a_client_that_leaves_frees_its_place(gateway):
    endless = {
        "inputs": [
            {"name": "times", "datatype": "INT64", "shape": [1], "data": [10**15]},
            {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]},
        ]
    }

    def in_flight(count: int) -> bool | None:
        return gateway.metric("inferlane_in_flight", pool="doubling") == count or None

    async with curl_cffi.AsyncSession(http_version=CurlHttpVersion.V3ONLY, verify=str(gateway.ca)) as session:
        asking = asyncio.create_task(session.post(f"{gateway.url()}/v2/models/doubling/infer", json=endless))
        await asyncio.to_thread(until, lambda: in_flight(1), "the request to run")
        asking.cancel()
        await asyncio.to_thread(until, lambda: in_flight(0), "the place to be free")
    assert gateway.metric("inferlane_requests_total", pool="doubling", reason="cancelled") == 1
