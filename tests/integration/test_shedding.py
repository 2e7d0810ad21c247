# SPDX-License-Identifier: Apache-2.0
"""Sheddable work in flight makes room for a higher class: told on every transport, ended at its backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane.errors import Reason
from tests.fakes import models
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import CLASSES, LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.openai_server import OpenAiServer
from tests.fakes.raw_quic import http3, section
from tests.fakes.scripted_oip import GOOD, ScriptedOip, never, saying

PATH = "/v2/models/m/infer"
CHAT = "/v1/chat/completions"
STREAM = b'{"model": "tiny", "messages": [], "stream": true}'
X = {"x": np.zeros(1, np.int32)}
SCHEMES = ("https", "quic", "quic+datagram", "udp")
SHEDDABLE = CLASSES.replace("LE, deadline: 60s", "LE, deadline: 60s, sheddable: true")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    """It never answers."""
    made = ScriptedOip(never)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def gateway(server: ScriptedOip, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """One place."""
    conf = write_config(tmp_path, oip_pool(server.port, slots=1), classes=SHEDDABLE)
    async with live_gateway(conf) as started:
        yield started


async def realtime_is_served(gateway: LiveGateway, server: ScriptedOip, folder: Path) -> None:
    """Though its place is taken."""
    server.answer = saying(200, GOOD % 1)
    async with h1_client(gateway.address, folder) as client:
        assert (await client.ask(PATH, inferlane_class="realtime")).status == 200


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_it_is_told_and_its_backend_too(gateway, server, tmp_path, scheme):
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        cheap = asyncio.create_task(client.infer("m", X, cls="background"))
        await server.has(1)
        await realtime_is_served(gateway, server, tmp_path)
        with pytest.raises(inferlane.Refused) as evicted:
            await cheap
    assert (evicted.value.status, evicted.value.reason) == (429, Reason.EVICTED)
    assert evicted.value.retry_after_s == 1
    assert "background" in evicted.value.detail
    async with asyncio.timeout(10):
        await server.asked[0].gone.wait()
    assert await gateway.value("inferlane_evicted_total", **{"class": "background"}) == 1
    await gateway.nothing_in_flight()


async def test_over_http_the_client_is_told_when_to_come_back(gateway, server, tmp_path):
    async with h1_client(gateway.address, tmp_path) as h1:
        h1.send(PATH, inferlane_class="background")
        await server.has(1)
        await realtime_is_served(gateway, server, tmp_path)
        evicted = await h1.answer()
        assert (evicted.status, evicted.document["reason"], evicted.fields["retry-after"]) == (429, "evicted", "1")
        # The connection goes on.
        assert (await h1.ask(PATH, inferlane_class="background")).status == 200
    await gateway.nothing_in_flight()


async def test_work_that_is_not_sheddable_is_finished(gateway, server, tmp_path):
    async with h1_client(gateway.address, tmp_path) as batch, h1_client(gateway.address, tmp_path) as realtime:
        batch.send(PATH, inferlane_class="batch", inferlane_timeout="700ms")
        await server.has(1)
        server.answer = saying(200, GOOD % 1)
        realtime.send(PATH, inferlane_class="realtime")
        assert (await batch.answer()).status == 504  # its own deadline, and nothing else
        assert (await realtime.answer()).status == 200
    assert await gateway.value("inferlane_evicted_total") == 0
    await gateway.nothing_in_flight()


async def test_an_equal_or_a_lower_class_ends_nobody(server, tmp_path):
    classes = SHEDDABLE.replace("AF11, deadline: 60s", "AF11, deadline: 60s, sheddable: true")
    conf = write_config(tmp_path, oip_pool(server.port, slots=1), classes=classes)
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        for cls in (b"batch", b"batch", b"background"):
            client.send(section(PATH.encode(), (b"inferlane-class", cls)), b"{}")
        await gateway.reaches("inferlane_gate_waiting", 2)
        assert len(server.asked) == 1
        assert await gateway.value("inferlane_evicted_total") == 0


async def test_as_many_go_as_are_needed_and_the_newest_first(server, tmp_path):
    conf = write_config(tmp_path, oip_pool(server.port, slots=4), classes=SHEDDABLE)
    async with live_gateway(conf) as gateway, http3(gateway.address) as client:
        cheap = []
        for count in range(1, 5):
            cheap.append(client.send(section(PATH.encode(), (b"inferlane-class", b"background")), b"{}"))
            await server.has(count)
        server.answer = saying(200, GOOD % 1)
        dear = [client.send(section(PATH.encode(), (b"inferlane-class", b"realtime")), b"{}") for _ in range(2)]
        assert [(await each.over()).status for each in dear] == [200, 200]
        await client.until(lambda: cheap[3].ended)
        assert [each.ended for each in cheap[:2]] == [False, False]
        assert {each.status for each in cheap[2:] if each.ended} == {429}
        assert 1 <= await gateway.value("inferlane_evicted_total") <= 2


@pytest.mark.parametrize("transport", ["h3", "h1"])
async def test_a_token_stream_that_is_ended_says_so(tmp_path, transport):
    llm = OpenAiServer()
    await llm.start()
    llm.script.stall_after = 1
    pools = f'[{{name: llm, model: "*", endpoints: [{{openai: "{llm.url}", slots: 1}}]}}]'
    async with live_gateway(write_config(tmp_path, pools, classes=SHEDDABLE)) as gateway:
        async with http3(gateway.address) as h3, h1_client(gateway.address, tmp_path) as h1:
            if transport == "h3":
                asking = h3.send(section(CHAT.encode(), (b"inferlane-class", b"background")), STREAM)
                await h3.until(lambda: b"Hel" in asking.body)
            else:
                h1.send(CHAT, STREAM, inferlane_class="background")
                await h1.head()
                assert b"Hel" in await h1.chunk()
            llm.script.stall_after = None
            async with h1_client(gateway.address, tmp_path) as other:
                answer = await other.ask(CHAT, b'{"model": "tiny", "messages": []}', inferlane_class="realtime")
                assert answer.status == 200
            if transport == "h3":
                text = bytes((await asking.over()).body)
                assert asking.reset is not None
            else:
                text = await h1.rest()
                assert not text.endswith(b"0\r\n\r\n")
            assert b"event: error" in text and b'"code":"evicted"' in text
            assert b'"type":"rate_limit_error"' in text
        await gateway.nothing_in_flight()
    await llm.close()


async def test_a_model_that_runs_is_ended(tmp_path):
    """It would run for ages; the higher class gets its thread."""
    models.saved(models.doubling(), tmp_path)
    conf = write_config(tmp_path, "[{name: m, model: m, endpoints: [{onnx: model.onnx}]}]", classes=SHEDDABLE)
    x = np.ones(1, np.float32)
    async with live_gateway(conf) as gateway, inferlane.Client(gateway.url("udp")) as client:
        cheap = asyncio.create_task(client.infer("m", {"times": np.array([1 << 62]), "x": x}, cls="background"))
        await gateway.reaches("inferlane_in_flight", 1)
        reply = await client.infer("m", {"times": np.array([3]), "x": x}, cls="realtime")
        assert reply.outputs["y"].tolist() == [8.0]
        with pytest.raises(inferlane.Refused) as evicted:
            await cheap
        assert evicted.value.reason is Reason.EVICTED
        await gateway.nothing_in_flight()
