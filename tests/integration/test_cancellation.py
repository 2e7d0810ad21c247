# SPDX-License-Identifier: Apache-2.0
"""Whoever goes away frees what it held, wherever it was: in a batch, in a token stream, hedged, tried again, silent.

Places in the queue and at a plain backend are test_cancel.py's and test_h1_door.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane.oip import encode_request
from inferlane.wire import Header, Type, encode
from tests.fakes import models
from tests.fakes.crowd import crowd
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import CLASSES, LiveGateway, eventually, live_gateway, write_config
from tests.fakes.openai_server import OpenAiServer
from tests.fakes.raw_quic import Exchange, RawClient, http3, quic, section
from tests.fakes.scripted_oip import GOOD, Asked, ScriptedOip, never, saying

PATH = "/v2/models/m/infer"
CHAT = "/v1/chat/completions"
STREAM = b'{"model": "tiny", "messages": [], "stream": true}'
X = {"x": np.ones((1, 2), np.float32)}
SCHEMES = ("https", "quic", "quic+datagram", "udp")
BODY, JSON_LENGTH = encode_request(X)
ASKING = encode(Header(type=Type.REQUEST, request_id=1, model="m", class_name="brief", total_length=2)) + b"{}"
BINARY = {"inference_header_content_length": str(JSON_LENGTH)}
# The deadline that a silent client's request has; all else has a minute.
BRIEF = CLASSES + "  - {name: brief, dscp: CS1, deadline: 500ms}\n"


async def within(event: asyncio.Event) -> None:
    """A generous bound: what is promised is a second."""
    async with asyncio.timeout(10):
        await event.wait()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    """It never answers."""
    made = ScriptedOip(never)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def batching(tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """A model that waits for a batch of two, longer than any test."""
    models.saved(models.identity("FP32", ("rows", "columns")), tmp_path)
    batch = "{max_size: 2, max_wait: 600s}"
    pools = f"[{{name: m, model: m, endpoints: [{{onnx: model.onnx, batch: {batch}}}]}}]"
    async with live_gateway(write_config(tmp_path, pools, classes=BRIEF)) as gateway:
        yield gateway


async def a_batch_is_two_of_those_that_are_left(gateway: LiveGateway) -> None:
    """Were one that went away still in its batch, the first would run with it, and the second wait for ever."""
    await gateway.nothing_in_flight()
    async with inferlane.Client(gateway.url("udp")) as client:
        first = asyncio.create_task(client.infer("m", X))
        await gateway.reaches("inferlane_in_flight", 1)
        await asyncio.gather(first, client.infer("m", X))
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_place_in_a_batch(batching: LiveGateway, scheme: str) -> None:
    async with inferlane.Client(batching.url(scheme), insecure=True) as client:
        waiting = asyncio.create_task(client.infer("m", X))
        await batching.reaches("inferlane_in_flight", 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await a_batch_is_two_of_those_that_are_left(batching)
    assert await batching.value("inferlane_requests_total", reason="cancelled") == 1


async def test_a_place_in_a_batch_over_http_1(batching: LiveGateway, tmp_path: Path) -> None:
    async with h1_client(batching.address, tmp_path) as client:
        client.send(PATH, BODY, **BINARY)
        await batching.reaches("inferlane_in_flight", 1)
        client.leave()
        await a_batch_is_two_of_those_that_are_left(batching)


async def test_a_place_in_a_batch_whose_deadline_passes(batching: LiveGateway, tmp_path: Path) -> None:
    async with h1_client(batching.address, tmp_path) as client:
        late = await client.ask(PATH, BODY, inferlane_class="brief", **BINARY)
        assert (late.status, late.document["reason"]) == (504, "deadline")
        await a_batch_is_two_of_those_that_are_left(batching)


@asynccontextmanager
async def silent_h3(gateway: LiveGateway, _: Path) -> AsyncIterator[Callable[[], None]]:
    async with http3(gateway.address) as client:
        client.send(section(PATH.encode(), (b"inferlane-class", b"brief")), b"{}")
        yield gone(client)


@asynccontextmanager
async def silent_stream(gateway: LiveGateway, _: Path) -> AsyncIterator[Callable[[], None]]:
    async with quic(gateway.address, "inferlane/1") as client:
        client.stream().send_raw(ASKING, end=True)
        yield gone(client)


@asynccontextmanager
async def silent_quic_datagram(gateway: LiveGateway, _: Path) -> AsyncIterator[Callable[[], None]]:
    async with quic(gateway.address, "inferlane/1") as client:
        client.quic.send_datagram_frame(ASKING)
        client.transmit()
        yield gone(client)


def gone(client: RawClient) -> Callable[[], None]:
    """Not a word of goodbye, nor of anything else."""

    def vanish() -> None:
        client.quic.datagrams_to_send = lambda now: []  # type: ignore[method-assign]

    return vanish


@asynccontextmanager
async def silent_datagram(gateway: LiveGateway, _: Path) -> AsyncIterator[Callable[[], None]]:
    async with crowd(gateway.address, 1) as (member,):
        task = member.ask(cls="brief")
        await gateway.reaches("inferlane_in_flight", 1)

        def vanish() -> None:
            task.cancel()
            member.leave()

        yield vanish
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def silent_h1(gateway: LiveGateway, folder: Path) -> AsyncIterator[Callable[[], None]]:
    async with h1_client(gateway.address, folder) as client:
        client.send(PATH, inferlane_class="brief")
        yield lambda: None  # it stays, reads nothing and says nothing


Silent = Callable[[LiveGateway, Path], AbstractAsyncContextManager[Callable[[], None]]]
SILENT: dict[str, Silent] = {
    "h3": silent_h3,
    "stream": silent_stream,
    "datagram": silent_quic_datagram,
    "udp": silent_datagram,
    "h1": silent_h1,
}


@pytest.mark.parametrize("transport", SILENT)
async def test_a_client_that_goes_silent_holds_nothing_beyond_its_deadline(
    server: ScriptedOip, tmp_path: Path, transport: str
) -> None:
    pools = f'[{{name: far, model: "*", endpoints: [{{{server.endpoint}, slots: 1}}]}}]'
    async with live_gateway(write_config(tmp_path, pools, classes=BRIEF)) as gateway:
        async with SILENT[transport](gateway, tmp_path) as vanish:
            await server.has(1)
            vanish()
            await within(server.asked[0].gone)
            await gateway.nothing_in_flight()
        server.answer = saying(200, GOOD % 1)
        async with h1_client(gateway.address, tmp_path) as client:
            assert (await client.ask(PATH)).status == 200
        assert await gateway.value("inferlane_requests_total", reason="deadline") == 1


@pytest.mark.parametrize("transport", ["h3", "h1"])
async def test_a_long_reply_that_nobody_reads_is_over_at_its_deadline(
    server: ScriptedOip, tmp_path: Path, transport: str
) -> None:
    server.answer = saying(200, b"{" + b" " * (64 << 20) + b"}")
    pools = f'[{{name: far, model: "*", endpoints: [{{{server.endpoint}, slots: 1}}]}}]'
    async with live_gateway(write_config(tmp_path, pools, classes=BRIEF)) as gateway:
        async with SILENT[transport](gateway, tmp_path) as vanish:
            vanish()
            await gateway.reaches("inferlane_requests_total", 1, reason="deadline")
            await gateway.nothing_in_flight()
        server.answer = saying(200, GOOD % 1)
        async with h1_client(gateway.address, tmp_path) as client:
            assert (await client.ask(PATH)).status == 200


async def test_an_upload_over_http_1_that_stops_half_way_holds_no_place(server: ScriptedOip, tmp_path: Path) -> None:
    pools = f'[{{name: far, model: "*", endpoints: [{{{server.endpoint}, slots: 1}}]}}]'
    async with (
        live_gateway(write_config(tmp_path, pools, classes=BRIEF)) as gateway,
        h1_client(gateway.address, tmp_path) as client,
        h1_client(gateway.address, tmp_path) as other,
    ):
        server.answer = saying(200, GOOD % 1)
        client.writer.write(
            f"POST {PATH} HTTP/1.1\r\nhost: h\r\ninferlane-class: brief\r\ncontent-length: 9\r\n\r\n{{".encode()
        )
        assert (await other.ask(PATH)).status == 200
        late = await client.answer()
        assert (late.status, late.document["reason"]) == (504, "deadline")
        assert "body" in late.document["detail"]
        assert len(server.asked) == 1
        await gateway.nothing_in_flight()


@pytest.fixture
async def llm() -> AsyncIterator[OpenAiServer]:
    made = OpenAiServer()
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def talking(llm: OpenAiServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """One place."""
    pools = f'[{{name: llm, model: "*", endpoints: [{{openai: "{llm.url}", slots: 1}}]}}]'
    async with live_gateway(write_config(tmp_path, pools, classes=BRIEF)) as gateway:
        yield gateway


WAYS: dict[str, Callable[[Exchange], None]] = {
    "STOP_SENDING": lambda asking: asking.stop(),
    "a closed connection": lambda asking: asking.client.close(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_token_stream_and_one_that_waits_for_its_place(
    talking: LiveGateway, llm: OpenAiServer, way: str
) -> None:
    llm.script.stall_after = 1
    async with http3(talking.address) as client, http3(talking.address) as other:
        streaming = client.send(section(CHAT.encode()), STREAM)
        await client.until(lambda: b"Hel" in streaming.body)
        waiting = other.send(section(CHAT.encode()), STREAM)
        await talking.reaches("inferlane_gate_waiting", 1)
        WAYS[way](waiting)
        await talking.reaches("inferlane_gate_waiting", 0)
        WAYS[way](streaming)
        await within((await llm.seen(1)).gone)
        await talking.nothing_in_flight()
    assert len(llm.requests) == 1
    assert await talking.value("inferlane_requests_total", reason="cancelled") == 2


async def test_a_token_stream_over_http_1_and_one_that_waits(
    talking: LiveGateway, llm: OpenAiServer, tmp_path: Path
) -> None:
    llm.script.stall_after = 1
    async with h1_client(talking.address, tmp_path) as client, h1_client(talking.address, tmp_path) as other:
        client.send(CHAT, STREAM)
        await client.head()
        assert b"Hel" in await client.chunk()
        other.send(CHAT, STREAM)
        await talking.reaches("inferlane_gate_waiting", 1)
        other.leave()
        await talking.reaches("inferlane_gate_waiting", 0)
        client.leave()
        await within((await llm.seen(1)).gone)
        await talking.nothing_in_flight()
    assert len(llm.requests) == 1


async def test_a_token_stream_without_its_first_byte(talking: LiveGateway, llm: OpenAiServer, tmp_path: Path) -> None:
    llm.script.stall_after = 0
    async with h1_client(talking.address, tmp_path) as client:
        client.send(CHAT, STREAM)
        seen = await llm.seen(1)
        client.leave()
        await within(seen.gone)
    async with http3(talking.address) as client:
        asking = client.send(section(CHAT.encode()), STREAM)
        seen = await llm.seen(2)
        asking.stop()
        await within(seen.gone)
        await talking.nothing_in_flight()


@pytest.fixture
async def two() -> AsyncIterator[list[ScriptedOip]]:
    async with AsyncExitStack() as until_the_end:
        servers = [ScriptedOip(saying(200, GOOD % number)) for number in (1, 2)]
        for each in servers:
            await each.start()
            until_the_end.push_async_callback(each.close)
        yield servers


def pool_of(servers: list[ScriptedOip], more: str = "") -> str:
    endpoints = ", ".join(f"{{{each.endpoint}, slots: 4}}" for each in servers)
    return f'[{{name: far, model: "*", pick: round_robin, endpoints: [{endpoints}]{more}}}]'


@asynccontextmanager
async def asking(gateway: LiveGateway, scheme: str, cls: str) -> AsyncIterator[asyncio.Task[inferlane.Reply]]:
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        task = asyncio.create_task(client.infer("m", X, cls=cls))
        yield task
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("scheme", ["https", "udp"])
async def test_both_copies_of_a_hedged_request(two: list[ScriptedOip], tmp_path: Path, scheme: str) -> None:
    classes = CLASSES.replace("EF, deadline: 60s", "EF, deadline: 60s, hedge: 50%")
    async with live_gateway(write_config(tmp_path, pool_of(two), classes=classes)) as gateway:
        async with inferlane.Client(gateway.url("udp")) as client:
            for _ in range(40):  # until what it takes is known
                await client.infer("m", X, cls="realtime")
        for each in two:
            each.answer = never
        hedged = await gateway.value("inferlane_hedges_total")
        async with asking(gateway, scheme, "realtime") as task:
            await gateway.reaches("inferlane_hedges_total", hedged + 1)
            for each in two:
                await each.has(1)
            task.cancel()
            for each in two:
                await within(each.asked[-1].gone)
        await gateway.nothing_in_flight()


async def test_the_second_try_of_a_request_that_one_endpoint_failed(two: list[ScriptedOip], tmp_path: Path) -> None:
    """Whoever is asked first fails it."""

    async def first_fails(asked: Asked) -> tuple[int, bytes]:
        if sum(len(each.asked) for each in two) == 1:
            return 503, b"{}"
        return await never(asked)

    for each in two:
        each.answer = first_fails
    async with live_gateway(write_config(tmp_path, pool_of(two))) as gateway:
        async with asking(gateway, "https", "realtime") as task:
            await gateway.reaches("inferlane_retries_total", 1)
            await eventually(lambda: at_work(two))
            (second,) = [asked for each in two for asked in each.asked if not asked.answered]
            task.cancel()
            await within(second.gone)
        await gateway.nothing_in_flight()


async def at_work(servers: list[ScriptedOip]) -> bool:
    return any(each.at_once for each in servers)
