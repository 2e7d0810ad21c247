# SPDX-License-Identifier: Apache-2.0
"""What an OpenAI-compatible server is asked, and what its answers, streams and probes become."""

from __future__ import annotations

import json
from time import monotonic

import pytest

from backends.messages import Api
from backends.remote.openai import OpenAiBackend
from backends.settings import SecretSettings
from inferlane.errors import Reason, Refused
from tests.fakes.asking import BATCH, SOON, asking, request_of

CHAT = "/v1/chat/completions"
BODY = b'{"model": "tiny", "messages": [], "temperature": 0.70}'


def chat(body: bytes = BODY, *, path: str = CHAT, **more):
    return request_of(body, model="tiny", path=path, **more)


async def test_what_a_server_is_asked(upstream, monkeypatch):
    monkeypatch.setenv("THE_KEY", "s3cret")
    backend = OpenAiBackend(f"{upstream.url}/", slots=4, key=SecretSettings(env="THE_KEY"))
    await backend.start()
    fields = (
        (b"content-type", b"application/json"),
        (b"authorization", b"Bearer the-clients-own"),
        (b"accept-encoding", b"gzip, br"),
        (b"content-encoding", b"gzip"),
        (b"x-stainless-lang", b"python"),
    )
    reply = await backend.infer(chat(path=f"{CHAT}?debug=1", fields=fields, traffic_class=BATCH))
    await backend.close()
    seen = await upstream.seen(1)
    assert (seen.method, seen.path, seen.body) == ("POST", CHAT, BODY)
    assert seen.fields.pop("inferlane-timeout").startswith("59")
    assert seen.fields == {
        "host": f"127.0.0.1:{upstream.port}",
        "authorization": "Bearer s3cret",
        "accept-encoding": "identity",
        "inferlane-class": "batch",
        "x-request-id": "r-1",
        "content-length": str(len(BODY)),
        "content-type": "application/json",
        "x-stainless-lang": "python",
    }
    assert (reply.status, reply.streaming, backend.api) == (200, False, Api.OPENAI)
    assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hello!"


async def test_without_a_key_the_clients_own_does_not_pass_either(openai, upstream):
    await openai.infer(chat(fields=((b"authorization", b"Bearer the-clients-own"),)))
    assert "authorization" not in (await upstream.seen(1)).fields


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_the_other_paths(openai, upstream, path):
    reply = await openai.infer(chat(path=path))
    assert reply.status == 200
    assert (await upstream.seen(1)).path == path


@pytest.mark.parametrize("path", ["", "/v1/files", "/v2/models/m/infer", "/v1/chat/completions/"])
async def test_other_paths_are_not_asked_for(openai, upstream, path):
    with pytest.raises(Refused) as refused:
        await openai.infer(chat(path=path))
    assert refused.value.reason is Reason.NOT_FOUND
    assert upstream.connections == 0


@pytest.mark.parametrize(("dialect", "number"), [("vllm", 1), ("triton", 2), (None, None)])
async def test_the_priority_is_the_classs_and_never_the_clients(upstream, dialect, number):
    backend = OpenAiBackend(upstream.url, slots=1, priority=dialect)
    await backend.infer(chat(b'{"model": "tiny", "priority": -5, "top_p": 1.0}', traffic_class=BATCH))
    await backend.close()
    seen = await upstream.seen(1)
    assert seen.json.get("priority") == number
    assert b'"top_p":1.0' in seen.body


async def test_time_that_is_up_is_not_spent_on_asking(openai, upstream):
    with pytest.raises(Refused) as refused:
        await openai.infer(chat(timeout_s=-1))
    assert refused.value.reason is Reason.DEADLINE
    assert upstream.connections == 0


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_what_a_server_refuses_passes_as_it_is(openai, upstream, status):
    upstream.script.refuse, upstream.script.retry_after = status, "7"
    reply = await openai.infer(chat())
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (status, str(status))
    assert (b"retry-after", b"7") in reply.fields


async def test_a_key_that_is_not_accepted_is_not_the_clients_fault(openai, upstream):
    upstream.script.refuse = 401
    with pytest.raises(Refused, match="key") as refused:
        await openai.infer(chat())
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)


@pytest.mark.parametrize("garbage", [b"", b"<html>", b"[1]", b"OK", b"x" * 100_000])
async def test_a_fast_good_answer_of_garbage_is_a_failure(openai, upstream, garbage):
    upstream.script.garbage = garbage
    with pytest.raises(Refused) as refused:
        await openai.infer(chat())
    assert refused.value.reason is Reason.BACKEND_FAILED


async def test_it_has_no_metadata_of_the_other_api(openai):
    with pytest.raises(Refused) as refused:
        await openai.metadata("tiny", "", deadline=monotonic() + 1)
    assert refused.value.reason is Reason.NOT_FOUND


async def test_the_models_that_it_lists(openai, upstream):
    upstream.script.models = ("tiny", "meta/large")
    assert [each["id"] for each in await openai.models(deadline=monotonic() + 60)] == ["tiny", "meta/large"]
    assert (await upstream.seen(1)).path == "/v1/models"


@pytest.mark.parametrize("garbage", [b"<html>", b"{}", b'{"data": 5}', b"[" * 10_000, b'{"data": "' + b"x" * 5_000_000])
async def test_a_list_of_models_that_is_none(openai, upstream, garbage):
    upstream.script.garbage = garbage
    with pytest.raises(Refused) as refused:
        await openai.models(deadline=monotonic() + 60)
    assert refused.value.reason is Reason.BACKEND_FAILED


async def test_models_without_a_name_are_left_out(openai, upstream):
    upstream.script.garbage = b'{"data": [1, {}, {"id": 5}, {"id": "tiny", "extra": null}]}'
    assert await openai.models(deadline=monotonic() + 60) == [{"id": "tiny", "extra": None}]


@pytest.mark.parametrize(("health", "paths"), [(200, ["/health"]), (404, ["/health", "/v1/models"])])
async def test_a_probe_of_a_server_that_is_well(openai, upstream, health, paths):
    upstream.script.health = health
    await openai.probe(deadline=monotonic() + 60)
    assert [each.path for each in upstream.requests] == paths


async def test_a_probe_of_a_server_that_is_not_ready(openai, upstream):
    upstream.script.health = 503
    with pytest.raises(Refused, match="503"):
        await openai.probe(deadline=monotonic() + 60)
    upstream.script.health, upstream.script.refuse = 404, 401
    with pytest.raises(Refused, match="key"):
        await openai.probe(deadline=monotonic() + 60)


async def test_a_probe_of_a_server_that_says_nothing(server):
    backend = OpenAiBackend(f"http://127.0.0.1:{server.port}", slots=1)
    with pytest.raises(Refused) as refused:
        await backend.probe(deadline=monotonic() + SOON)
    assert refused.value.reason is Reason.DEADLINE
    await backend.close()


async def test_a_probe_neither_takes_nor_waits_for_a_requests_connection(openai, upstream):
    await openai.infer(chat())
    await openai.probe(deadline=monotonic() + 60)
    assert upstream.connections == 2
    await openai.infer(chat())
    await openai.probe(deadline=monotonic() + 60)
    assert upstream.connections == 2


async def test_a_compressed_reply_is_refused(server):
    backend = OpenAiBackend(f"http://127.0.0.1:{server.port}", slots=1)
    task = asking(backend, chat())
    peer = await server.accept()
    await peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n\x1f\x8b")
    with pytest.raises(Refused, match="compressed"):
        await task
    await backend.close()
