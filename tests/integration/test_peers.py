# SPDX-License-Identifier: Apache-2.0
"""Envoy and Caddy in front of a gateway, speaking HTTP/3 to it, and behind it, as the server of an `oip:` endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from inferlane import Client
from inferlane.errors import Reason, Refused
from tests.fakes import peers
from tests.fakes.authority import issue
from tests.fakes.models import linear
from tests.fakes.programs import GatewayProgram

X = np.random.default_rng(13).standard_normal((3, 8), np.float32)
LARGE = np.random.default_rng(14).standard_normal((5, 1 << 18), np.float32)


@pytest.fixture(scope="module", params=["envoy", "caddy"])
def front(request, gateway, tmp_path_factory) -> Iterator[str]:
    """host:port of a proxy that asks the gateway over HTTP/3."""
    opened = {"envoy": peers.envoy_in_front, "caddy": peers.caddy_in_front}[request.param]
    with opened(f"127.0.0.1:{gateway.port}", tmp_path_factory.mktemp(request.param), ca=gateway.ca) as address:
        yield address


@pytest.fixture
def triton(front) -> Iterator[InferenceServerClient]:
    """Triton's client, which knows nothing of HTTP/3."""
    with InferenceServerClient(front, concurrency=8) as connected:
        yield connected


def tensor(array: np.ndarray) -> InferInput:
    made = InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


def test_health_and_metadata_through_a_proxy(triton):
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("linear")
    assert triton.get_model_metadata("linear")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]


def test_answers_through_a_proxy_are_onnxruntime_s(triton, gateway, directly):
    before = gateway.metric("inferlane_requests_total", transport="h3", pool="linear", reason="ok")
    answer = triton.infer("linear", [tensor(X)])
    for name, expected in directly(linear(), {"x": X}).items():
        assert answer.as_numpy(name).tobytes() == expected.tobytes()
    assert gateway.metric("inferlane_requests_total", transport="h3", pool="linear", reason="ok") == before + 1


def test_five_megabytes_through_a_proxy(triton):
    assert triton.infer("identity-fp32", [tensor(LARGE)]).as_numpy("y").tobytes() == LARGE.tobytes()


def test_many_at_once_through_a_proxy(triton):
    arrays = [np.full((1, 8), index, np.float32) for index in range(32)]
    asked = [triton.async_infer("identity-fp32", [tensor(each)]) for each in arrays]
    for one, each in zip(asked, arrays, strict=True):
        assert one.get_result().as_numpy("y").tobytes() == each.tobytes()


def test_a_refusal_through_a_proxy_says_what_is_wrong(triton):
    with pytest.raises(InferenceServerException, match=r"\[404\].*unheard-of"):
        triton.infer("unheard-of", [tensor(X)])
    with pytest.raises(InferenceServerException, match=r"\[400\].*input 'x'"):
        triton.infer("linear", [tensor(X[:, :5])])


@pytest.fixture(scope="module", params=["caddy http", "caddy https", "envoy https"])
def behind(request, open_gateway, model_server, certificates, tmp_path_factory) -> Iterator[GatewayProgram]:
    """A gateway whose endpoint is a proxy in front of the model server."""
    folder = tmp_path_factory.mktemp("behind")
    with ExitStack() as opened:
        if request.param == "envoy https":
            address = opened.enter_context(peers.envoy_behind(model_server.http, folder, certificates))
        else:
            tls = certificates if request.param == "caddy https" else None
            address = opened.enter_context(peers.caddy_behind(model_server.http, folder, tls))
        scheme = request.param.rpartition(" ")[2]
        tls = f", tls: {{ca: {certificates.ca}}}" if scheme == "https" else ""
        yield opened.enter_context(open_gateway(f"{{oip: '{scheme}://{address}'{tls}}}"))


@pytest.mark.parametrize("transport", ["https", "quic", "quic+datagram", "udp"])
async def test_answers_from_behind_a_proxy_are_onnxruntime_s(behind, directly, transport):
    async with Client(behind.url(transport), ca=behind.ca) as client:
        reply = await client.infer("linear", {"x": X})
    for name, expected in directly(linear(), {"x": X}).items():
        assert reply.outputs[name].tobytes() == expected.tobytes()
    assert reply.timing.compute is not None  # the model server's own figure came through


async def test_five_megabytes_from_behind_a_proxy(behind):
    async with Client(behind.url(), ca=behind.ca) as client:
        reply = await client.infer("identity-fp32", {"x": LARGE})
    assert reply.outputs["y"].tobytes() == LARGE.tobytes()


async def test_a_refusal_from_behind_a_proxy_says_what_is_wrong(behind):
    async with Client(behind.url(), ca=behind.ca) as client:
        with pytest.raises(Refused, match="input 'x'") as refused:
            await client.infer("linear", {"x": X[:, :5]})
        assert refused.value.reason is Reason.INVALID_TENSOR
        with pytest.raises(Refused, match="unheard-of") as refused:
            await client.infer("unheard-of", {"x": X})
        assert refused.value.reason is Reason.UNKNOWN_MODEL
    assert behind.metric("inferlane_in_flight") == 0


@pytest.mark.parametrize("transport", ["https", "udp"])
async def test_a_proxy_whose_server_is_gone(start_gateway, tmp_path, transport):
    with peers.caddy_behind("127.0.0.1:1", tmp_path, None) as address:
        gateway = start_gateway(f"{{oip: 'http://{address}'}}")
        async with Client(gateway.url(transport), ca=gateway.ca) as client:
            with pytest.raises(Refused) as refused:
                await client.infer("linear", {"x": X})
    assert refused.value.reason is Reason.BACKEND_FAILED
    assert gateway.metric("inferlane_in_flight") == 0


async def test_a_proxy_with_a_certificate_of_nobody_we_trust(start_gateway, tmp_path, model_server, certificates):
    strangers = issue(tmp_path)
    with peers.caddy_behind(model_server.http, tmp_path, strangers) as address:
        gateway = start_gateway(f"{{oip: 'https://{address}', tls: {{ca: {certificates.ca}}}}}")
        async with Client(gateway.url(), ca=gateway.ca) as client:
            with pytest.raises(Refused, match="certificate") as refused:
                await client.infer("linear", {"x": X})
    assert refused.value.reason is Reason.BACKEND_FAILED
    assert gateway.metric("inferlane_in_flight") == 0
