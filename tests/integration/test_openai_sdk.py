# SPDX-License-Identifier: Apache-2.0
"""The `openai` package, pointed at the gateway and otherwise as everybody uses it, in front of a scripted server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.fakes.live_gateway import LiveGateway, eventually, live_gateway, write_config
from tests.fakes.openai_server import OpenAiServer

ASKED = [{"role": "user", "content": "Say hello."}]
CLASSES = """
  - {name: realtime, dscp: EF, deadline: 60s}
  - {name: interactive, dscp: AF21, deadline: 60s, default: true}
  - {name: hasty, dscp: AF11, deadline: 60s, stream: {stall: 300ms, total: 60s, keepalive: 100ms}}
"""


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    made = OpenAiServer()
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def gateway(server: OpenAiServer, tmp_path: Path, monkeypatch) -> AsyncIterator[LiveGateway]:
    """One place. Its clients trust its certificate as a site's own is trusted."""
    pools = f'[{{name: llm, model: "*", endpoints: [{{openai: "{server.url}", slots: 1}}]}}]'
    async with live_gateway(write_config(tmp_path, pools, classes=CLASSES)) as started:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "development.pem"))
        yield started


@pytest.fixture
async def client(gateway: LiveGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=gateway.url("https") + "/v1", api_key="mine", max_retries=0) as made:
        yield made


async def test_a_completion_in_one_piece(client, server):
    answer = await client.chat.completions.create(model="tiny", messages=ASKED)
    assert answer.choices[0].message.content == "Hello!"
    (seen,) = server.requests
    assert seen.json == {"model": "tiny", "messages": ASKED}
    assert "authorization" not in seen.fields  # the client's key is not the backend's


async def test_a_token_stream_comes_as_it_is_made(client, server, gateway):
    going_on = asyncio.Semaphore(0)

    async def paced(number: int) -> None:
        if number:
            await going_on.acquire()

    server.script.pace = paced
    stream = await client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
    words = []
    async for each in stream:
        words.append(each.choices[0].delta.content)
        going_on.release()
    assert words == ["Hel", "lo", "!"]
    await gateway.nothing_in_flight()


async def test_the_blocking_client(gateway, server):
    def ask() -> list[str]:
        with openai.OpenAI(base_url=gateway.url("https") + "/v1", api_key="mine", max_retries=0) as client:
            whole = client.chat.completions.create(model="tiny", messages=ASKED).choices[0].message.content
            stream = client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
            pieces = "".join(each.choices[0].delta.content or "" for each in stream)
            text = client.completions.create(model="tiny", prompt="Say hello.").choices[0].text
            return [whole or "", pieces, text]

    assert await asyncio.to_thread(ask) == ["Hello!"] * 3


async def test_embeddings_and_models(client):
    answer = await client.embeddings.create(model="tiny", input="hello", encoding_format="float")
    assert answer.data[0].embedding == [0.5, -0.25]
    assert [each.id async for each in client.models.list()] == ["tiny"]


async def test_one_model_whose_name_has_a_slash(client, server):
    server.script.models = ("hub/tiny",)
    assert (await client.models.retrieve("hub/tiny")).id == "hub/tiny"


async def test_a_stream_that_breaks_off_is_an_error(client, server, gateway):
    server.script.break_after = 2
    stream = await client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
    words: list[str | None] = []
    with pytest.raises(openai.APIError):
        async for each in stream:
            words += [each.choices[0].delta.content]
    assert words == ["Hel", "lo"]
    await gateway.nothing_in_flight()
    server.script.break_after = None
    assert (await client.chat.completions.create(model="tiny", messages=ASKED)).choices[0].message.content == "Hello!"


async def test_a_stream_that_stalls_is_an_error(client, server, gateway):
    server.script.stall_after = 1
    stream = await client.chat.completions.create(
        model="tiny", messages=ASKED, stream=True, extra_headers={"Inferlane-Class": "hasty"}
    )
    with pytest.raises(openai.APIError):
        async for _ in stream:
            continue
    async with asyncio.timeout(10):
        await (await server.seen(1)).gone.wait()
    await gateway.nothing_in_flight()


async def test_a_client_that_closes_its_stream_cancels_it_at_the_server(client, server, gateway):
    server.script.stall_after = 1
    stream = await client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(10):
        await (await server.seen(1)).gone.wait()
    await gateway.nothing_in_flight()
    await gateway.reaches("inferlane_requests_total", 1, reason="cancelled")


async def test_refusals_are_the_client_s_own_exceptions(client, server):
    server.script.refuse = 429
    server.script.retry_after = "7"
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(model="tiny", messages=ASKED)
    assert refused.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.BadRequestError, match="model"):
        await client.chat.completions.create(model="", messages=ASKED)
    with pytest.raises(openai.NotFoundError) as missing:
        await client.files.list()
    assert missing.value.body


async def test_many_streams_at_once_share_one_place_in_turn(client, server, gateway):
    async def ask() -> str:
        stream = await client.chat.completions.create(model="tiny", messages=ASKED, stream=True)
        return "".join([each.choices[0].delta.content or "" async for each in stream])

    assert await asyncio.gather(*(ask() for _ in range(32))) == ["Hello!"] * 32

    async def over() -> bool:
        return server.streaming <= 1  # the connection that is kept

    await eventually(over)
