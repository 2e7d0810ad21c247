# SPDX-License-Identifier: Apache-2.0
"""Token streams from end to end: kept alive, bounded as a whole and in their silences, broken off aloud, never mixed.

What the `openai` package makes of them is test_openai_sdk.py's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aioquic.h3.connection import ErrorCode

from tests.fakes.h1_client import H1Client, h1_client
from tests.fakes.live_gateway import CLASSES, LiveGateway, eventually, live_gateway, write_config
from tests.fakes.openai_server import OpenAiServer
from tests.fakes.raw_quic import Exchange, http3, section

CHAT = "/v1/chat/completions"
STREAM = b'{"model": "tiny", "messages": [], "stream": true}'
KEEPALIVE = b": keep-alive\n\n"
PROMISES = (
    CLASSES
    + """\
  - {name: hasty, dscp: CS1, deadline: 60s, stream: {stall: 300ms}}
  - {name: short, dscp: CS1, deadline: 60s, stream: {total: 500ms}}
  - {name: kept, dscp: CS1, deadline: 60s, stream: {keepalive: 50ms}}
  - {name: prompt, dscp: CS1, deadline: 300ms, stream: {keepalive: 50ms}}
"""
)


@pytest.fixture
async def llm() -> AsyncIterator[OpenAiServer]:
    made = OpenAiServer()
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def gateway(llm: OpenAiServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    pools = f'[{{name: llm, model: "*", endpoints: [{{openai: "{llm.url}", slots: 4}}]}}]'
    async with live_gateway(write_config(tmp_path, pools, classes=PROMISES)) as started:
        yield started


class ByHttp3:
    """A stream that is broken ends with a reset."""

    def __init__(self, asking: Exchange) -> None:
        self.asking = asking
        self._seen = 0

    async def text(self) -> bytes:
        """All that has come, once that is more than before."""
        asking = self.asking
        await asking.client.until(lambda: len(asking.body) > self._seen or asking.ended or asking.reset is not None)
        self._seen = len(asking.body)
        return bytes(asking.body)

    async def all(self) -> bytes:
        await self.asking.over()
        return bytes(self.asking.body)

    @property
    def broken(self) -> bool:
        assert self.asking.reset in (None, ErrorCode.H3_INTERNAL_ERROR)
        return self.asking.reset is not None


class ByHttp1:
    """A stream that is broken has no last chunk."""

    def __init__(self, client: H1Client) -> None:
        self.client = client
        self._text = b""
        self._ended = False

    async def text(self) -> bytes:
        if not self._text:
            assert (await self.client.head())[0] == 200
        piece = await self.client.chunk()
        self._ended = not piece
        self._text += piece
        return self._text

    async def all(self) -> bytes:
        try:
            while not self._ended:
                await self.text()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        return self._text

    @property
    def broken(self) -> bool:
        return not self._ended


TRANSPORTS = ("h3", "h1")


async def over_at(llm: OpenAiServer) -> None:
    """Wait until the backend makes no more answers."""

    async def quiet() -> bool:
        return llm.streaming == 0

    await eventually(quiet)


@asynccontextmanager
async def streaming(gateway: LiveGateway, folder: Path, transport: str, cls: str) -> AsyncIterator[ByHttp3 | ByHttp1]:
    if transport == "h3":
        async with http3(gateway.address) as h3:
            yield ByHttp3(h3.send(section(CHAT.encode(), (b"inferlane-class", cls.encode())), STREAM))
    else:
        async with h1_client(gateway.address, folder) as h1:
            h1.send(CHAT, STREAM, inferlane_class=cls)
            yield ByHttp1(h1)


def words(text: bytes) -> list[str]:
    """Of its events, as far as they are tokens."""
    lines = [each.removeprefix(b"data: ") for each in text.split(b"\n\n") if each.startswith(b"data: {")]
    return [json.loads(each)["choices"][0]["delta"]["content"] for each in lines]


def error_of(text: bytes) -> dict[str, Any]:
    """The last event, which says why there is no more."""
    last = text.rstrip(b"\n").rpartition(b"\n\n")[2]
    assert last.startswith(b"event: error\ndata: "), last
    found: dict[str, Any] = json.loads(last.partition(b"data: ")[2])["error"]
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_silent_backend_s_stream_is_kept_alive_between_its_events(gateway, llm, tmp_path, transport):
    going_on = asyncio.Event()

    async def paced(number: int) -> None:
        if number == 1:
            await going_on.wait()

    llm.script.pace = paced
    async with streaming(gateway, tmp_path, transport, "kept") as stream:
        while (text := await stream.text()).count(KEEPALIVE) < 3:
            assert words(text) == ["Hel"]
        going_on.set()
        text = await stream.all()
        assert not stream.broken
    assert words(text) == ["Hel", "lo", "!"]
    assert text.replace(KEEPALIVE, b"").endswith(b"data: [DONE]\n\n")
    # Comments are no tokens.
    assert await gateway.value("inferlane_token_gap_seconds_count", **{"class": "kept"}) <= 3
    await gateway.nothing_in_flight()


async def test_no_comment_makes_up_for_a_first_token_that_is_late(gateway, llm, tmp_path):
    llm.script.stall_after = 0
    async with h1_client(gateway.address, tmp_path) as client:
        answer = await client.ask(CHAT, STREAM, inferlane_class="prompt")
    assert (answer.status, answer.document["reason"]) == (504, "deadline")
    assert answer.document["error"]["type"] == "server_error"
    await over_at(llm)
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stream_may_take_longer_than_its_class_s_deadline(gateway, llm, tmp_path, transport):
    async def paced(number: int) -> None:
        if number:
            await asyncio.sleep(0.3)

    llm.script.pace = paced
    async with streaming(gateway, tmp_path, transport, "prompt") as stream:
        text = await stream.all()
        assert not stream.broken
    assert words(text) == ["Hel", "lo", "!"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stalled_stream_ends_with_an_error_event_and_a_reset(gateway, llm, tmp_path, transport):
    llm.script.stall_after = 2
    async with streaming(gateway, tmp_path, transport, "hasty") as stream:
        text = await stream.all()
        assert stream.broken
    assert words(text) == ["Hel", "lo"]
    assert (error_of(text)["code"], error_of(text)["type"]) == ("stalled", "server_error")
    assert "0.3 s" in error_of(text)["message"]
    await over_at(llm)
    await gateway.nothing_in_flight()
    assert await gateway.value("inferlane_requests_total", reason="stalled") == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stream_that_goes_on_and_on_is_ended_by_its_total(gateway, llm, tmp_path, transport):
    llm.script.tokens = ("word ",) * 10_000

    async def paced(_: int) -> None:
        await asyncio.sleep(0.01)

    llm.script.pace = paced
    async with streaming(gateway, tmp_path, transport, "short") as stream:
        text = await stream.all()
        assert stream.broken
    assert 1 <= len(words(text)) < 1000
    assert error_of(text)["code"] == "deadline"
    assert "0.5 s" in error_of(text)["message"]
    await over_at(llm)
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["break_after", "end_after"])
async def test_a_stream_that_breaks_off_never_ends_cleanly(gateway, llm, tmp_path, transport, how):
    """Closed in the middle, or ended in good order without `data: [DONE]`."""
    setattr(llm.script, how, 2)
    async with streaming(gateway, tmp_path, transport, "interactive") as stream:
        text = await stream.all()
        assert stream.broken
    assert words(text) == ["Hel", "lo"]
    assert error_of(text)["code"] == "backend_failed"
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_never_reads_is_let_go_and_disturbs_nobody(gateway, llm, tmp_path, transport):
    """It takes what windows and buffers take; then its own backend connection waits, and then it is over."""
    llm.script.tokens = ("x" * 16_000,) * 4_000
    async with streaming(gateway, tmp_path, transport, "hasty") as stream:
        await stream.text()
        stop_reading(stream)
        await others_are_served(gateway, tmp_path)
        await over_at(llm)
        assert llm.requests[0].tokens_sent < len(llm.script.tokens) // 2
        await gateway.nothing_in_flight()
    # Its own doing, and not the backend's.
    assert await gateway.value("inferlane_requests_total", reason="cancelled") == 1


def stop_reading(stream: ByHttp3 | ByHttp1) -> None:
    """What comes is not taken any more: no window grows."""
    if isinstance(stream, ByHttp1):
        stream.client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
        return
    stream.asking.client.quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]


async def others_are_served(gateway: LiveGateway, folder: Path) -> None:
    for _ in range(5):
        async with h1_client(gateway.address, folder) as client:
            answer = await client.ask("/v1/embeddings", b'{"model": "tiny", "input": "hello"}')
            assert answer.document["data"][0]["embedding"] == [0.5, -0.25]


async def test_each_of_many_streams_gets_its_own_words_in_order(gateway, llm, tmp_path):
    llm.script.tokens = tuple(f"{number} " for number in range(50))
    async with http3(gateway.address) as client:
        asked = [client.send(section(CHAT.encode()), STREAM) for _ in range(40)]
        for each in asked:
            await each.over()
    expected = "".join(llm.script.tokens)
    assert {"".join(words(bytes(each.body))) for each in asked} == {expected}
    assert all(each.ended for each in asked)
    await gateway.nothing_in_flight()


async def test_a_failed_stream_begins_again_elsewhere_while_nothing_of_it_is_out(llm, tmp_path):
    """Until its first byte it is a request like any other."""
    broken = OpenAiServer()
    broken.script.break_after = 0
    await broken.start()
    endpoints = ", ".join(f'{{openai: "{each.url}", slots: 4}}' for each in (broken, llm))
    pools = f'[{{name: llm, model: "*", pick: round_robin, endpoints: [{endpoints}]}}]'
    async with live_gateway(write_config(tmp_path, pools)) as gateway:
        for _ in range(4):
            async with streaming(gateway, tmp_path, "h1", "interactive") as stream:
                assert words(await stream.all()) == ["Hel", "lo", "!"]
                assert not stream.broken
        assert await gateway.value("inferlane_retries_total") >= 1
        await gateway.nothing_in_flight()
    await broken.close()
