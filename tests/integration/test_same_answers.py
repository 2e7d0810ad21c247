# SPDX-License-Identifier: Apache-2.0
"""Whatever way a request takes, its answer is that of onnxruntime called directly, to the bit.

Four transports to the gateway, and behind it the model in process, in a process that all workers share, or `inferlane
serve` by HTTP/1.1 or by datagram.
That a batch's answers are onnxruntime's on the same batch is shown where the batch is known:
tests/unit/backends/local/test_onnx.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest

from inferlane import Client
from inferlane.errors import Reason, Refused
from inferlane.oip import DATATYPES
from tests.fakes.models import identity, linear
from tests.fakes.programs import GatewayProgram

TRANSPORTS = ("https", "quic", "quic+datagram", "udp")
ROUTES = {
    "in process": "gateway",
    "models' process": "gateway_with_workers",
    "oip": "gateway_by_oip",
    "datagram": "gateway_by_datagram",
}
RNG = np.random.default_rng(11)


@pytest.fixture(params=ROUTES)
def route(request) -> GatewayProgram:
    """A gateway, by what is behind it."""
    return request.getfixturevalue(ROUTES[request.param])


@pytest.fixture(params=TRANSPORTS)
async def client(request, route) -> AsyncIterator[Client]:
    """Connected to it over each transport."""
    async with Client(route.url(request.param), ca=route.ca) as connected:
        yield connected


def values(datatype: str) -> np.ndarray:
    """Every bit pattern for small numbers, a good mix for large ones, and texts that break naive code."""
    if datatype == "BYTES":
        texts = ["", "plain", "nul \0 inside", "\0", "né", "中文", "😀", "line\nend", '"quoted"', "z" * 700]
        return np.array(texts, object).reshape(2, 5)
    if datatype == "BOOL":
        return RNG.random((3, 7)) < 0.5
    dtype = DATATYPES[datatype]
    if dtype.itemsize == 1:
        return np.arange(256, dtype=np.uint8).view(dtype).reshape(16, 16)
    return np.frombuffer(RNG.bytes(30 * dtype.itemsize), dtype).reshape(5, 6)


def bits(outputs: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Names, shapes, types and contents, so that NaN equals itself."""
    return {name: _bits(array) for name, array in outputs.items()}


def _bits(array: np.ndarray) -> tuple[Any, ...]:
    if array.dtype == object:
        return array.shape, [each if isinstance(each, bytes) else each.encode() for each in array.reshape(-1)]
    return array.shape, array.dtype, array.tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype(client, directly, datatype):
    feeds = {"x": values(datatype)}
    reply = await client.infer(f"identity-{datatype.lower()}", feeds)
    assert bits(reply.outputs) == bits(directly(identity(datatype, ("rows", "columns")), feeds))


async def test_arithmetic(client, directly):
    feeds = {"x": RNG.standard_normal((4, 8), np.float32)}
    reply = await client.infer("linear", feeds)
    assert bits(reply.outputs) == bits(directly(linear(), feeds))
    assert (reply.model, reply.version) == ("linear", "1")


async def test_some_of_the_outputs(client, directly):
    feeds = {"x": RNG.standard_normal((1, 8), np.float32)}
    reply = await client.infer("linear", feeds, outputs=["z"])
    assert bits(reply.outputs) == bits({"z": directly(linear(), feeds)["z"]})


async def test_numbers_that_json_does_not_know(client, directly):
    quiet, signalling = 0x7FC00000, 0x7F800001
    special = np.array([quiet, signalling, quiet | 0x80012345], np.uint32).view(np.float32)
    x = np.concatenate([special, np.array([np.inf, -np.inf, -0.0, 1e-45], np.float32)]).reshape(1, -1)
    reply = await client.infer("identity-fp32", {"x": x})
    assert bits(reply.outputs) == bits({"y": x})
    infinite = np.full((1, 8), np.inf, np.float32)
    reply = await client.infer("linear", {"x": infinite})
    assert bits(reply.outputs) == bits(directly(linear(), {"x": infinite}))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
async def test_empty_tensors(client, shape):
    for datatype in ("FP32", "BYTES"):
        x = np.empty(shape, DATATYPES[datatype])
        reply = await client.infer(f"identity-{datatype.lower()}", {"x": x})
        assert bits(reply.outputs) == bits({"y": x})


async def test_more_than_one_datagram(client):
    """Several fragments on each leg that is datagrams; on the others, several packets."""
    x = RNG.standard_normal((3, 1024), np.float32)
    reply = await client.infer("identity-fp32", {"x": x})
    assert bits(reply.outputs) == bits({"y": x})


@pytest.mark.parametrize("scheme", ["https", "quic"])
@pytest.mark.parametrize("behind", ["in process", "oip"])
async def test_five_megabytes(request, scheme, behind):
    gateway = request.getfixturevalue(ROUTES[behind])
    x = RNG.standard_normal((5, 1 << 18), np.float32)
    async with Client(gateway.url(scheme), ca=gateway.ca) as client:
        reply = await client.infer("identity-fp32", {"x": x})
    assert bits(reply.outputs) == bits({"y": x})


@pytest.mark.parametrize("scheme", ["quic+datagram", "udp"])
async def test_more_than_sixteen_datagrams_need_a_stream(gateway, scheme):
    async with Client(gateway.url(scheme), ca=gateway.ca) as client:
        with pytest.raises(Refused) as refused:
            await client.infer("identity-fp32", {"x": np.zeros((1, 8192), np.float32)})
    assert refused.value.reason is Reason.USE_STREAM


async def test_a_body_that_no_datagram_carries_to_the_backend(gateway_by_datagram):
    async with Client(gateway_by_datagram.url(), ca=gateway_by_datagram.ca) as client:
        with pytest.raises(Refused, match="`datagram:` endpoint") as refused:
            await client.infer("identity-fp32", {"x": np.zeros((1, 8192), np.float32)})
    assert refused.value.reason is Reason.USE_STREAM


async def test_many_at_once_each_get_their_own_answer(client, directly):
    feeds = [{"x": np.full((1, 8), index, np.float32)} for index in range(24)]
    replies = await asyncio.gather(*(client.infer("linear", each) for each in feeds))
    assert [bits(reply.outputs) for reply in replies] == [bits(directly(linear(), each)) for each in feeds]


@pytest.mark.parametrize("scheme", TRANSPORTS)
async def test_batched_rows_differ_by_rounding_alone(gateway, directly, scheme):
    feeds = [{"x": RNG.standard_normal((rows, 8), np.float32)} for rows in (1, 2, 1, 3, 1, 1, 2, 1)]
    async with Client(gateway.url(scheme), ca=gateway.ca) as client:
        replies = await asyncio.gather(*(client.infer("linear-batched", each) for each in feeds))
    for reply, each in zip(replies, feeds, strict=True):
        for name, expected in directly(linear(), each).items():
            np.testing.assert_allclose(reply.outputs[name], expected, rtol=1e-6, atol=1e-6)
