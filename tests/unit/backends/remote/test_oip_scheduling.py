# SPDX-License-Identifier: Apache-2.0
"""The scheduling parameters of Open Inference Protocol requests: of bodies that are here, or arrive, or are binary."""

from __future__ import annotations

import asyncio
import json

import pytest

from backends.body import Body
from backends.remote.oip import MOST_JSON, OipBackend
from inferlane.errors import Reason, Refused
from tests.fakes.asking import BATCH, SOON, asking, request_of, settle
from tests.fakes.raw_server import RawServer

HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
OWN = b'{"inputs": [], "parameters": {"priority": 1, "timeout": 9, "x": 1}}'
TENSORS = b"\x00\xff" * 50


async def asked(server: RawServer, dialect: str | None, request) -> tuple[dict[bytes, bytes], bytes]:
    """The fields and the body that the server gets."""
    backend = OipBackend(f"http://127.0.0.1:{server.port}", slots=1, priority=dialect)
    task = asking(backend, request)
    await settle()
    peer = await server.accept()
    head, body = await peer.request()
    peer.say(HELLO)
    await task
    await backend.close()
    return dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2]), body  # type: ignore[return-value]


def parameters_of(body: bytes) -> dict[str, int]:
    return json.loads(body)["parameters"]


@pytest.mark.parametrize("dialect", [None, "vllm", "triton"])
async def test_they_are_the_classs_in_json(server, dialect):
    _, body = await asked(server, dialect, request_of(OWN, traffic_class=BATCH))
    parameters = parameters_of(body)
    assert parameters.get("priority") == {None: None, "vllm": 1, "triton": 2}[dialect]
    timeout = parameters.get("timeout")
    assert (timeout is not None and 50_000_000 < timeout <= 60_000_000) if dialect == "triton" else timeout is None
    assert parameters["x"] == 1


@pytest.mark.parametrize("arriving", [False, True])
@pytest.mark.parametrize("dialect", [None, "vllm", "triton"])
async def test_binary_tensors_stay_as_they_are_behind_a_head_that_changes(server, dialect, arriving):
    whole = OWN + TENSORS
    body = Body(limit=1000, declared=len(whole))
    if arriving:
        for cut in (whole[:10], whole[10:80]):
            body.feed(cut, ended=False)
        asyncio.get_running_loop().call_later(SOON, lambda: body.feed(whole[80:], ended=True))
    else:
        body.feed(whole, ended=True)
    fields, sent = await asked(server, dialect, request_of(body, json_length=len(OWN), traffic_class=BATCH))
    length = int(fields[b"inference-header-content-length"])
    assert int(fields[b"content-length"]) == len(sent)
    assert sent[length:] == TENSORS
    assert parameters_of(sent[:length]).get("priority") == {None: None, "vllm": 1, "triton": 2}[dialect]


async def test_a_body_without_them_is_not_touched(server):
    body = b'{ "inputs" : [ ] }' + TENSORS
    fields, sent = await asked(server, None, request_of(body, json_length=18))
    assert (sent, fields[b"inference-header-content-length"]) == (body, b"18")


async def test_json_that_arrives_piece_by_piece_is_gathered_where_a_priority_is_to_be_set(server):
    body = Body(limit=1000)
    body.feed(OWN[:20], ended=False)
    asyncio.get_running_loop().call_later(SOON, lambda: body.feed(OWN[20:], ended=True))
    fields, sent = await asked(server, "vllm", request_of(body))
    assert fields[b"transfer-encoding"] == b"chunked"
    assert parameters_of(sent.split(b"\r\n")[1]) == {"x": 1, "priority": 0}


@pytest.mark.parametrize("json_length", [None, MOST_JSON + 1])
async def test_json_too_long_to_be_gathered_is_refused_where_a_priority_is_to_be_set(server, json_length):
    backend = OipBackend(f"http://127.0.0.1:{server.port}", slots=1, priority="triton")
    body = Body(limit=2 * MOST_JSON)
    body.feed(b" " * (MOST_JSON + 1), ended=json_length is None)
    with pytest.raises(Refused) as refused:
        await backend.infer(request_of(body, json_length=json_length))
    assert refused.value.reason is Reason.TOO_LARGE
    assert server.accepted == 0


async def test_a_head_that_never_comes_is_not_waited_for_beyond_the_deadline(server):
    backend = OipBackend(f"http://127.0.0.1:{server.port}", slots=1, priority="triton")
    body = Body(limit=100)
    body.feed(b"{", ended=False)
    with pytest.raises(Refused) as refused:
        await backend.infer(request_of(body, json_length=10, timeout_s=SOON))
    assert refused.value.reason is Reason.DEADLINE


@pytest.mark.parametrize("arriving", [False, True])
async def test_a_body_shorter_than_its_json_is_the_clients_mistake(backend, server, arriving):
    body = Body(limit=100)
    if arriving:
        asyncio.get_running_loop().call_later(SOON, lambda: body.feed(b"{}", ended=True))
    else:
        body.feed(b"{}", ended=True)
    with pytest.raises(Refused) as refused:
        await backend.infer(request_of(body, json_length=3))
    assert refused.value.reason is Reason.BAD_REQUEST
    assert server.accepted == 0


@pytest.mark.parametrize("dialect", [None, "triton"])
async def test_a_compressed_body_passes_only_where_nothing_is_to_be_set(server, dialect):
    request = request_of(b"\x1f\x8b", fields=((b"content-encoding", b"gzip"),))
    if dialect is None:
        assert (await asked(server, None, request))[1] == b"\x1f\x8b"
        return
    with pytest.raises(Refused) as refused:
        await OipBackend(f"http://127.0.0.1:{server.port}", slots=1, priority="triton").infer(request)
    assert (refused.value.reason, refused.value.status) == (Reason.BAD_REQUEST, 415)
