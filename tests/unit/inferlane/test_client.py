# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aioquic.h3.connection import ErrorCode

import inferlane
from inferlane import oip
from inferlane.client import Client
from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.transports.stream import CANCELLED
from inferlane.wire import UNTIL_FIN, Header, Type, encode
from tests.fakes.quic_gateway import quic_gateway
from tests.fakes.udp_gateway import udp_gateway

STAGES = {"queue_us": 1000, "backend_us": 2000, "compute_us": 3000}


def test_the_package_offers_what_applications_need():
    assert inferlane.Client is Client
    assert all(hasattr(inferlane, name) for name in inferlane.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = inferlane.Server


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("inferlane", {"numpy", "aioquic", "msgspec"}),
        ("inferlane.wire", {"numpy", "aioquic", "msgspec"}),
        ("inferlane.blocking", {"onnxruntime", "pyroute2", "pydantic", "aiohttp"}),
    ],
)
def test_importing_it_loads_no_more_than_it_needs(module, absent):
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert module in done.stdout.split()
    assert not absent & set(done.stdout.split())


@asynccontextmanager
async def served(answer, pair, scheme="https"):
    """A gateway that answers so, and a client of it."""
    async with (
        quic_gateway(answer, pair) as gateway,
        Client(f"{scheme}://127.0.0.1:{gateway.port}", ca=pair[0]) as client,
    ):
        yield gateway, client


def over_http(question):
    fields = {
        b"inference-header-content-length": b"%d" % question.json_length,
        b"server-timing": b"network;dur=0.5, queue;dur=1, backend;dur=2, compute;dur=3",
        b"inferlane-class": b"realtime",
        b"inferlane-endpoint": b"magika/0",
        b"inferlane-dscp": b"46",
    }
    return lambda asked: asked.respond(200, {**fields, b"x-request-id": asked.fields[b"x-request-id"]}, question.body)


def reply_header(question, request_id, total_length):
    return Header(
        type=Type.REPLY,
        request_id=request_id,
        status=200,
        class_name="realtime",
        dscp=46,
        json_length=question.json_length,
        total_length=total_length,
        **STAGES,
    )


def over_stream(question):
    return lambda asked: asked.send(encode(reply_header(question, asked.header.request_id, UNTIL_FIN)) + question.body)


def over_datagram(question):
    header = {"class_name": "realtime", "dscp": 46, "json_length": question.json_length, **STAGES}
    return lambda asked: asked.datagram(type=Type.REPLY, status=200, body=question.body, **header)


def check(reply, question):
    np.testing.assert_array_equal(reply.outputs["target_label"], question.outputs["target_label"])
    assert (reply.model, reply.version, reply.served_class) == ("magika", "1", "realtime")
    assert (reply.timing.queue, reply.timing.backend, reply.timing.compute) == (0.001, 0.002, 0.003)
    assert reply.timing.network >= 0
    assert reply.timing.total > 0
    assert len(reply.request_id) == 16


@pytest.mark.parametrize(
    ("scheme", "answer", "endpoint"),
    [
        ("https", over_http, "magika/0"),
        ("quic", over_stream, None),
        ("quic+datagram", over_datagram, None),
    ],
)
async def test_a_model_answers_over_quic(pair, question, scheme, answer, endpoint):
    seen = []

    def note_and_answer(asked):
        seen.append(asked)
        answer(question)(asked)

    async with served(note_and_answer, pair, scheme) as (_, client):
        reply = await client.infer("magika", question.inputs, cls="realtime", timeout=30.0)

    check(reply, question)
    assert (reply.dscp_sent, reply.dscp_seen, reply.endpoint) == (46, 46, endpoint)
    json_length = (
        seen[0].header.json_length if seen[0].header else int(seen[0].fields[b"inference-header-content-length"])
    )
    sent = oip.decode_request(seen[0].body, json_length)
    assert sent.request_id == reply.request_id
    np.testing.assert_array_equal(sent.inputs["bytes"].array, question.inputs["bytes"])


async def test_a_model_answers_over_udp(question):
    def answer(heard):
        header = {"class_name": "realtime", "dscp": heard.ds_field >> 2, "json_length": question.json_length, **STAGES}
        heard.send(type=Type.REPLY, status=200, body=question.body, **header)

    with udp_gateway(answer) as gateway:
        async with Client(f"udp://127.0.0.1:{gateway.port}") as client:
            reply = await client.infer("magika", question.inputs, cls="realtime")

    check(reply, question)
    assert (reply.dscp_sent, reply.dscp_seen) == (46, 46)


async def test_each_class_has_a_connection_of_its_own_and_its_mark(question):
    def answer(heard):
        heard.send(type=Type.REPLY, status=200, body=question.body, json_length=question.json_length)

    with udp_gateway(answer) as gateway:
        async with Client(f"udp://127.0.0.1:{gateway.port}", dscp={"gold": 34, "batch": 0}) as client:
            classes = [None, "realtime", "background", "gold", "batch", "unheard-of"]
            await asyncio.gather(*(client.infer("magika", question.inputs, cls=each) for each in classes * 3))
            assert repr(client) == f"<Client udp://127.0.0.1:{gateway.port}, 6 connections>"

    marks = {(heard.header.class_name, heard.ds_field >> 2) for heard in gateway.heard if heard.header.model}
    assert marks == {(None, 0), ("realtime", 46), ("background", 1), ("gold", 34), ("batch", 0), ("unheard-of", 0)}
    assert len({heard.client for heard in gateway.heard}) == 6


async def test_a_connection_that_died_is_replaced(pair, question):
    asked = asyncio.Queue()

    async with served(asked.put_nowait, pair) as (gateway, client):
        waiting = asyncio.create_task(client.infer("magika", question.inputs))
        await asked.get()
        gateway.close_connections(0x100, "restarting")
        with pytest.raises(ConnectionFailed, match="restarting"):
            await waiting
        gateway.answer = over_http(question)

        check(await client.infer("magika", question.inputs), question)


async def test_a_gateway_that_forgot_the_connection_is_asked_anew(pair, question, monkeypatch):
    # Long enough for the new connection on a busy machine, which is held to it, too.
    monkeypatch.setattr("inferlane.transports.silence.LONGEST_S", 0.5)

    async with served(over_stream(question), pair, "quic") as (gateway, client):
        await client.infer("magika", question.inputs)
        gateway.forget_connections()
        with pytest.raises(Refused) as caught:
            await client.infer("magika", question.inputs, timeout=1.0)
        await client.infer("magika", question.inputs)

        assert caught.value.reason is Reason.DEADLINE
        assert len(client._lines) == 1


async def test_a_draining_gateway_gets_no_more_requests_on_that_connection(pair, question):
    answers = [lambda asked: asked.reset(ErrorCode.H3_REQUEST_REJECTED), over_http(question)]

    async with served(lambda asked: answers.pop(0)(asked), pair) as (gateway, client):
        check(await client.infer("magika", question.inputs), question)

        assert len(gateway.connections) == 2


async def test_a_request_that_nobody_takes_is_not_moved_for_ever(pair, question):
    async with served(lambda asked: asked.reset(ErrorCode.H3_REQUEST_REJECTED), pair) as (gateway, client):
        with pytest.raises(Refused) as caught:
            await client.infer("magika", question.inputs)

        assert caught.value.reason is Reason.DRAINING
        assert len(gateway.connections) == 4


async def test_a_request_that_was_on_its_way_when_the_gateway_moved_is_asked_again(pair, question):
    asked = asyncio.Queue()

    async with served(asked.put_nowait, pair, "quic") as (gateway, client):
        waiting = asyncio.create_task(client.infer("magika", question.inputs))
        await asked.get()
        gateway.answer = over_stream(question)
        gateway.close_connections(0x5, "another process serves here now")
        check(await waiting, question)


async def test_a_timeout_is_a_refusal_and_the_gateway_is_told(pair, question):
    async with served(over_http(question), pair) as (gateway, client):
        await client.infer("magika", question.inputs)
        gateway.answer = lambda asked: None
        with pytest.raises(Refused, match=r"did not answer within 0\.05 s") as caught:
            await client.infer("magika", question.inputs, timeout=0.05)

        assert caught.value.reason is Reason.DEADLINE
        assert await gateway.given_up.get() == (4, ErrorCode.H3_REQUEST_CANCELLED)


async def test_a_cancelled_request_is_cancelled_in_the_gateway(pair, question):
    asked = asyncio.Queue()

    async with served(asked.put_nowait, pair, "quic") as (gateway, client):
        waiting = asyncio.create_task(client.infer("magika", question.inputs))
        await asked.get()
        waiting.cancel()

        assert await gateway.given_up.get() == (0, CANCELLED)
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_one_that_gives_up_connecting_does_not_disturb_the_others(pair, question):
    async with served(over_http(question), pair) as (gateway, client):
        asking = [asyncio.create_task(client.infer("magika", question.inputs)) for _ in range(3)]
        await asyncio.sleep(0)
        asking[0].cancel()

        for reply in await asyncio.gather(*asking[1:]):
            check(reply, question)
        assert len(gateway.connections) == 1


async def test_a_gateway_that_is_not_there_fails_every_waiter():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    async with Client(f"https://127.0.0.1:{port}") as client:
        asking = (client.infer("magika", {"x": np.zeros(1)}) for _ in range(2))
        outcomes = await asyncio.gather(*asking, return_exceptions=True)

    assert all(isinstance(each, ConnectionFailed) for each in outcomes)
    assert outcomes[0] is not outcomes[1]


async def test_closing_fails_what_is_in_flight_and_what_comes_later(pair, question):
    asked = asyncio.Queue()

    async with quic_gateway(asked.put_nowait, pair) as gateway:
        client = Client(f"https://127.0.0.1:{gateway.port}", ca=pair[0])
        waiting = asyncio.create_task(client.infer("magika", question.inputs))
        await asked.get()
        connecting = asyncio.create_task(client.infer("magika", question.inputs, cls="batch"))
        await asyncio.sleep(0)
        await client.close()
        await client.close()

        for each in (waiting, connecting):
            with pytest.raises(ConnectionFailed, match="the client was closed"):
                await each
        with pytest.raises(ConnectionFailed, match="the client is closed"):
            await client.infer("magika", question.inputs)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"outputs": [{"name": "x", "datatype": "FP32", "shape": [9]}]}'])
async def test_a_reply_of_garbage_is_a_failed_backend(pair, question, body):
    async with served(lambda asked: asked.respond(200, {}, body), pair) as (_, client):
        with pytest.raises(Refused, match="no Open Inference Protocol reply") as caught:
            await client.infer("magika", question.inputs)

    assert caught.value.reason is Reason.BACKEND_FAILED


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"model": ""}, "model"),
        ({"cls": ""}, "cls"),
        ({"cls": "a b"}, "cls"),
        ({"cls": "a\r\nhost: x"}, "cls"),
        ({"cls": "x" * 256}, "cls"),
        ({"timeout": 0.0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
        ({"inputs": {"x": np.array([object()])}}, "'x'"),
    ],
)
async def test_an_impossible_question_is_an_error_of_the_caller(arguments, complaint):
    async with Client("https://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match=complaint):
            await client.infer(**{"model": "magika", "inputs": {"x": np.zeros(1)}, **arguments})


@pytest.mark.parametrize("value", [-1, 64])
def test_a_mark_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"dscp of batch: .* 0\.\.63"):
        Client("https://127.0.0.1", dscp={"batch": value})
