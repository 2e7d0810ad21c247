# SPDX-License-Identifier: Apache-2.0
"""Tensors that a model cannot take, over every transport: a 4xx that names the tensor and what was expected.

After each of them the gateway answers a good request over the same connection.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from inferlane import oip
from inferlane.errors import Reason, Refused
from inferlane.messages import EncodedReply, EncodedRequest
from inferlane.target import parse_target
from inferlane.transports.open import Transport, connect, transport_for
from inferlane.transports.quic import ALPN_NATIVE, Trust
from inferlane.wire import Header, Type, encode
from proxy.listeners.native import MALFORMED
from tests.fakes import models
from tests.fakes.live_gateway import LiveGateway, live_gateway, write_config
from tests.fakes.raw_quic import http3, quic, section

SCHEMES = ("https", "quic", "quic+datagram", "udp")
ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
NUMBERS = "x FP32 [-1, 4]"
JSON_LENGTH = slice(28, 32)  # where the wire header has it

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Bad:
    """A body that must be refused, and words that its refusal must have."""

    body: bytes
    words: tuple[str, ...]
    json_length: int | None = None
    model: str = "numbers"


def tensor(**changes: Any) -> dict[str, Any]:
    """A good input x, changed; None takes a member away."""
    good = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    return {name: value for name, value in (good | changes).items() if value is not None}


def request(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def in_json(*words: str, model: str = "numbers", **changes: Any) -> Bad:
    return Bad(request(tensor(**changes)), words, model=model)


def in_binary(data: bytes, *words: str, size: Any = 16, model: str = "numbers", **changes: Any) -> Bad:
    head = request(tensor(data=None, parameters={"binary_data_size": size}, **changes))
    return Bad(head + data, words, json_length=len(head), model=model)


def in_text(data: bytes, *words: str) -> Bad:
    return in_binary(data, *words, size=len(data), model="text", shape=[1], datatype="BYTES")


def with_length(json_length: int | None, *words: str) -> Bad:
    """A good binary request whose JSON length is wrong."""
    return Bad(oip.encode_request({"x": ROW})[0], words, json_length=json_length)


CASES = {
    "another name": in_json("'x' is missing", NUMBERS, name="y"),
    "no inputs": Bad(b'{"inputs":[]}', ("'x' is missing", NUMBERS)),
    "one of two": Bad(
        request(tensor(name="left", shape=[1, 3], data=[1, 2, 3])), ("'right' is missing", "right FP32"), model="pair"
    ),
    "one too many": Bad(request(tensor(), tensor(name="y")), ("'y' is not one", NUMBERS)),
    "given twice": Bad(request(tensor(), tensor()), ("'x'", "twice")),
    "another datatype": in_json("'x' has datatype INT32", "expects FP32", datatype="INT32"),
    "no datatype of the protocol": in_json("'x'", "'FLOAT'", "FP32", datatype="FLOAT"),
    "another shape": in_json("'x' has shape [1, 5]", "expects [-1, 4]", shape=[1, 5], data=[0] * 5),
    "another rank": in_json("'x' has shape [4]", "expects [-1, 4]", shape=[4]),
    "a negative dimension": in_json("'x'", "[-1, 4] has a negative dimension", shape=[-1, 4]),
    "a negative product of negatives": in_json("'x'", "negative dimension", shape=[-2, -2]),
    "a product beyond 64 bits": in_json("'x'", "overflows", shape=[2**62, 4]),
    "a product that wraps around to 4": in_json("'x'", "overflows", shape=[2**32 + 1, 2**32 - 1, 4, 4]),
    "a dimension beyond 64 bits": in_json("'x'", "overflows", shape=[10**30, 4]),
    "a dimension with a point": in_json("inputs[0].shape", shape=[1.5, 4]),
    "too few numbers": in_json("'x'", "takes 4 elements, but data has 3", data=[1, 2, 3]),
    "too many numbers": in_json("'x'", "takes 4 elements, but data has 5", data=[1, 2, 3, 4, 5]),
    "text for numbers": in_json("'x'", "Expected `float`, got `str`", data=["a", 2, 3, 4]),
    "a number out of range": in_json("'x'", "data[0]", data=[1e300, 2, 3, 4]),
    "data twice": in_json("'x'", "both data and", parameters={"binary_data_size": 16}),
    "no data at all": in_json("'x'", "neither data nor", data=None),
    "an unknown output": Bad(request(tensor(), outputs=[{"name": "z"}]), ("output 'z'", "y FP32 [-1, 4]")),
    "truncated binary data": in_binary(ROW.tobytes()[:-4], "'x'", "binary_data_size is 16", "12 bytes"),
    "oversized binary data": in_binary(ROW.tobytes() + b"1234", "4 bytes follow", "last tensor"),
    "a binary size that is not the shape's": in_binary(bytes(12), "'x'", "takes 16 bytes", "is 12", size=12),
    "a negative binary size": in_binary(ROW.tobytes(), "'x'", "binary_data_size", size=-16),
    "a binary size beyond 64 bits": in_binary(ROW.tobytes(), "'x'", "binary_data_size", size=2**80),
    "a binary size in quotes": in_binary(ROW.tobytes(), "'x'", "binary_data_size", size="16"),
    "a binary shape that overflows": in_binary(ROW.tobytes(), "'x'", "overflows", shape=[2**61, 2**61]),
    "a JSON length that cuts the JSON": with_length(20, "JSON"),
    "a JSON length that is too long": with_length(len(oip.encode_request({"x": ROW})[0]) - 2, "JSON"),
    "no JSON length": with_length(None, "JSON"),
    "an empty body": Bad(b"", ("JSON",)),
    "no JSON": Bad(b"inputs=x", ("JSON",)),
    "half of the JSON": Bad(request(tensor())[:-9], ("JSON",)),
    "JSON of another kind": Bad(b"[1]", ("JSON", "array")),
    "JSON that is not UTF-8": Bad(b'{"id":"\xff","inputs":[]}', ("JSON", "UTF-8")),
    "NaN": in_json("'x'", "NaN", "send the tensor as binary", data=[float("nan"), 2, 3, 4]),
    "minus infinity": in_json("'x'", "-Infinity", "send the tensor as binary", data=[1, 2, float("-inf"), 4]),
    "no rows": in_json("'x'", "no rows", shape=[0, 4], data=[], model="batched"),
    "a length prefix that lies": in_text(struct.pack("<I", 9) + b"abc", "'x'", "element 0 of 1"),
    "a length prefix that is cut": in_text(b"\x01", "'x'", "at least 4 bytes"),
    "text that is not UTF-8": in_text(struct.pack("<I", 2) + b"\xff\xfe", "'x'", "UTF-8"),
    "a third truth value": in_binary(b"\x02", "'x'", "BOOL", size=1, shape=[1], datatype="BOOL", model="truth"),
    "NaN asked back as JSON": in_binary(np.full((1, 4), np.nan, "f4").tobytes(), "output 'y'", "binary_data: true"),
}

BOTTOMLESS = (
    "",
    '{"id":',
    '{"inputs":[{"name":"x","datatype":"FP32","shape":',
    '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":',
    '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"parameters":',
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveGateway]:
    """A gateway with a model for every kind of tensor."""
    folder = tmp_path_factory.mktemp("gateway")
    files = {
        "numbers": models.identity(),
        "batched": models.identity(),
        "text": models.identity("BYTES", ("rows",)),
        "truth": models.identity("BOOL", ("rows",)),
        "pair": models.two_inputs(),
    }
    for name, model in files.items():
        models.saved(model, folder, f"{name}.onnx")
    pools = ", ".join(f"{{name: {name}, model: {name}, endpoints: [{_endpoint(name)}]}}" for name in files)
    async with live_gateway(write_config(folder, f"[{pools}]")) as started:
        yield started


def _endpoint(name: str) -> str:
    return f"{{onnx: {name}.onnx{', batch: {max_size: 4}' if name == 'batched' else ''}}}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lines(gateway: LiveGateway) -> AsyncIterator[dict[str, Transport]]:
    """One connection of each kind."""
    trust = Trust(insecure=True)
    targets = {scheme: parse_target(gateway.url(scheme)) for scheme in SCHEMES}
    made = {
        scheme: await connect(target, transport_for(target, trust, dscp=0, max_reply=1 << 20), timeout=30)
        for scheme, target in targets.items()
    }
    yield made
    for transport in made.values():
        transport.close()


async def ask(line: Transport, body: bytes, json_length: int | None, model: str = "numbers") -> EncodedReply:
    return await line.exchange(
        EncodedRequest(
            request_id=secrets.randbits(64),
            model=model,
            version="",
            class_name=None,
            body=body,
            json_length=json_length,
            started=monotonic(),
            timeout_s=30,
        )
    )


async def still_serves(line: Transport) -> None:
    reply = await ask(line, *oip.encode_request({"x": ROW}))
    assert np.array_equal(oip.decode_reply(reply.body, reply.json_length).outputs["y"], ROW)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", CASES)
async def test_a_bad_tensor_is_named_with_what_was_expected(
    lines: dict[str, Transport], name: str, scheme: str
) -> None:
    bad, line = CASES[name], lines[scheme]
    with pytest.raises(Refused) as caught:
        await ask(line, bad.body, bad.json_length, bad.model)
    assert caught.value.status == 400
    assert caught.value.reason in (Reason.INVALID_TENSOR, Reason.BAD_REQUEST)
    missing = [word for word in bad.words if word not in caught.value.detail]
    assert not missing, caught.value.detail
    await still_serves(line)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("around", BOTTOMLESS)
@pytest.mark.parametrize("opened", ["[", '{"a":'])
async def test_bottomless_json_is_refused(lines: dict[str, Transport], around: str, scheme: str, opened: str) -> None:
    depth = 200_000 if scheme in ("https", "quic") else 3_000  # as much as datagrams carry
    with pytest.raises(Refused) as caught:
        await ask(lines[scheme], (around + opened * depth).encode(), None)
    assert (caught.value.status, caught.value.reason) == (400, Reason.BAD_REQUEST)
    assert "JSON" in caught.value.detail
    await still_serves(lines[scheme])


async def test_closing_the_bottomless_helps_nobody(lines: dict[str, Transport]) -> None:
    data = request(tensor(data="here")).replace(b'"here"', b"[" * 200_000 + b"1" + b"]" * 200_000)
    with pytest.raises(Refused) as caught:
        await ask(lines["https"], data, None)
    assert caught.value.status == 400
    await still_serves(lines["https"])


@pytest.mark.parametrize("announced", [b"0", b"10000", b"-1", b"+5", b"1e2", b"99999999999999999999"])
async def test_an_announced_json_length_that_cannot_be(gateway: LiveGateway, announced: bytes) -> None:
    async with http3(gateway.address) as client:
        fields = section(b"/v2/models/numbers/infer", (b"inference-header-content-length", announced))
        answer = await client.ask(fields, request(tensor()))
        assert answer.status == 400
        assert answer.head[b"content-type"] == b"application/problem+json"
        assert "length" in answer.document["detail"]
        assert (await client.ask(section(b"/v2/models/numbers/infer"), request(tensor()))).status == 200


async def test_a_json_length_beyond_the_message_is_malformed_on_a_stream(gateway: LiveGateway) -> None:
    message = bytearray(encode(Header(type=Type.REQUEST, request_id=1, model="numbers", total_length=4)) + b"1234")
    message[JSON_LENGTH] = struct.pack("!I", 5)
    async with quic(gateway.address, ALPN_NATIVE) as client:
        exchange = client.stream()
        exchange.send_raw(bytes(message), end=True)
        await exchange.over()
    assert exchange.reset == MALFORMED
    assert await gateway.value("inferlane_datagrams_dropped_total", reason="malformed_json_length") == 1


async def test_a_refusal_is_a_problem_document(gateway: LiveGateway) -> None:
    async with http3(gateway.address) as client:
        fields = section(b"/v2/models/numbers/infer", (b"x-request-id", b"mine-7"))
        answer = await client.ask(fields, request(tensor(datatype="INT32")))
    assert (answer.status, answer.head[b"content-type"]) == (400, b"application/problem+json")
    assert answer.document == {
        "type": "urn:inferlane:refused:invalid_tensor",
        "title": "invalid tensor",
        "status": 400,
        "reason": "invalid_tensor",
        "detail": "input 'x' has datatype INT32; the model expects FP32",
        "request_id": "mine-7",
        "error": "input 'x' has datatype INT32; the model expects FP32",
    }


async def test_nothing_is_left_in_flight(gateway: LiveGateway) -> None:
    await gateway.nothing_in_flight()
