# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from backends.body import Body
from backends.errors import BackendError
from backends.messages import Api, Reply
from backends.remote.http_server import ONE_WRITE
from backends.remote.oip import OipBackend
from backends.settings import SecretSettings
from inferlane.errors import Refused
from tests.fakes.asking import BATCH, asking, request_of

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b'content-length: 7\r\n\r\n{"a":1}'


def lines(head: bytes) -> list[bytes]:
    """A head's lines, without the remaining time, which differs in each run."""
    assert head.endswith(b"\r\n\r\n")
    return [line for line in head[:-4].split(b"\r\n") if not line.startswith(b"inferlane-timeout: ")]


async def test_what_a_server_is_asked(backend, server):
    fields = (
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"6"),
        (b"authorization", b"Bearer secret"),
        (b"accept", b"*/*"),
    )
    request = request_of(b"{}data", json_length=2, traceparent="00-ab-cd-01", fields=fields)
    task = asking(backend, request)
    peer = await server.accept()
    head, body = await peer.request()
    assert lines(head) == [
        b"POST /v2/models/magika/infer HTTP/1.1",
        b"host: 127.0.0.1:%d" % server.port,
        b"inferlane-class: realtime",
        b"x-request-id: r-1",
        b"traceparent: 00-ab-cd-01",
        b"inference-header-content-length: 2",
        b"content-length: 6",
        b"content-type: application/octet-stream",
        b"accept: */*",
    ]
    assert body == b"{}data"
    assert head.partition(b"inferlane-timeout: ")[2].startswith(b"59")
    peer.say(HELLO)
    await task


@pytest.mark.parametrize(("json_length", "kind"), [(None, b"json"), (2, b"octet-stream")])
async def test_a_request_without_fields_gets_a_content_type(backend, server, json_length, kind):
    task = asking(backend, request_of(json_length=json_length))
    peer = await server.accept()
    assert b"content-type: application/" + kind in lines(await peer.head())
    peer.say(HELLO)
    await task


async def test_versions_and_the_path_before_v2(server):
    backend = OipBackend(f"http://localhost:{server.port}/team/", slots=4)
    task = asking(backend, request_of(version="3"))
    peer = await server.accept()
    assert lines(await peer.head())[0] == b"POST /team/v2/models/magika/versions/3/infer HTTP/1.1"
    peer.say(HELLO)
    await task
    await backend.close()


async def test_what_the_reply_says(backend, server):
    request = request_of()
    task = asking(backend, request)
    peer = await server.accept()
    await peer.request()
    before = monotonic()
    peer.say(
        OK
        + b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: 2\r\nconnection: keep-alive\r\n"
        b"server-timing: queue;dur=1, compute;dur=12.5\r\nserver: triton\r\ncontent-length: 6\r\n\r\n{}data"
    )
    assert await task == Reply(
        status=200,
        body=b"{}data",
        json_length=2,
        fields=((b"content-type", b"application/octet-stream"), (b"server", b"triton")),
        compute_s=pytest.approx(0.0125),
        backend_queue_s=pytest.approx(0.001),
    )
    assert before <= request.timeline.first_byte <= monotonic()


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"500 Oops", b"503 Busy"])
async def test_what_a_server_answers_passes_whatever_its_status(backend, server, status):
    task = asking(backend)
    peer = await server.accept()
    await peer.request()
    peer.say(b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
    reply = await task
    assert (reply.status, reply.body) == (int(status[:3]), b"{}")


async def test_a_long_reply_comes_in_pieces(backend, server):
    task = asking(backend)
    peer = await server.accept()
    await peer.request()
    peer.say(OK + b"content-length: 1000000\r\n\r\n" + b"{" * 1000)
    reply = await task
    peer.say(b"x" * 999_000)
    assert sum([len(piece) async for piece in reply.body]) == 1_000_000
    again = asking(backend)
    await peer.request()
    peer.say(HELLO)
    assert (await again).body == b'{"a":1}'
    assert server.accepted == 1


async def test_a_connection_serves_one_class_and_one_request_at_a_time(backend, server):
    first = asking(backend)
    one = await server.accept()
    await one.request()
    second = asking(backend)
    two = await server.accept()
    await two.request()
    two.say(HELLO)
    one.say(HELLO)
    await first
    await second
    other = asking(backend, request_of(traffic_class=BATCH))
    three = await server.accept()
    await three.request()
    three.say(HELLO)
    await other
    assert server.accepted == 3
    assert "realtime 2, batch 1" in repr(backend)


async def test_a_body_that_arrives_late_is_sent_as_it_comes(backend, server):
    body = Body(limit=100, declared=6)
    task = asking(backend, request_of(body))
    peer = await server.accept()
    assert b"content-length: 6" in lines(await peer.head())
    for piece in (b"abc", b"def"):
        body.feed(piece, ended=piece == b"def")
        assert await peer.read(3) == piece
    peer.say(HELLO)
    assert (await task).body == b'{"a":1}'


async def test_a_body_of_unknown_length_is_chunked(backend, server):
    body = Body(limit=100)
    task = asking(backend, request_of(body))
    peer = await server.accept()
    assert b"transfer-encoding: chunked" in lines(await peer.head())
    body.feed(b"abc", ended=True)
    assert await peer.read(13) == b"3\r\nabc\r\n0\r\n\r\n"
    peer.say(HELLO)
    await task


async def test_a_large_body_that_is_there_keeps_its_length(backend, server):
    data = bytes(range(256)) * 8192
    assert len(data) > ONE_WRITE
    task = asking(backend, request_of(data))
    peer = await server.accept()
    head, body = await peer.request()
    assert b"content-length: %d" % len(data) in lines(head)
    assert body == data
    peer.say(HELLO)
    await task


async def test_a_large_body_reads_no_faster_than_the_server(backend, server):
    credited = 0

    def consumed(count: int) -> None:
        nonlocal credited
        credited += count

    size = 32 * 1024 * 1024
    body = Body(limit=size, consumed=consumed)
    for _ in range(512):
        body.feed(b"x" * (size // 512), ended=False)
    body.feed(b"", ended=True)
    task = asking(backend, request_of(body))
    peer = await server.accept()
    await peer.head()
    before = -1
    while credited != before:  # until the kernel's buffers are full and nothing moves any more
        before = credited
        for _ in range(50):
            await asyncio.sleep(0)
    assert 0 < credited < size
    assert await peer.read(size) == b"x" * size
    peer.say(HELLO)
    await task


async def test_an_early_refusal_of_the_body_is_delivered(backend, server):
    body = Body(limit=100)
    task = asking(backend, request_of(body))
    peer = await server.accept()
    await peer.head()
    peer.say(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\n{}")
    assert (await task).status == 413
    assert await peer.end() == b""


async def test_metadata(backend, server):
    task = asyncio.ensure_future(backend.metadata("magika", "3", deadline=monotonic() + 60))
    peer = await server.accept()
    assert lines(await peer.head()) == [
        b"GET /v2/models/magika/versions/3 HTTP/1.1",
        b"host: 127.0.0.1:%d" % server.port,
        b"accept: application/json",
    ]
    peer.say(OK + b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
    assert (await task).body == b"{}"


async def test_a_probe_asks_whether_it_is_ready(backend, server):
    task = asyncio.ensure_future(backend.probe(deadline=monotonic() + 60))
    peer = await server.accept()
    assert lines(await peer.head())[0] == b"GET /v2/health/ready HTTP/1.1"
    peer.say(OK + b"content-length: 0\r\n\r\n")
    await task
    task = asyncio.ensure_future(backend.probe(deadline=monotonic() + 60))
    await peer.head()
    peer.say(b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(Refused, match="503"):
        await task
    assert backend.api is Api.OIP


async def test_a_key_goes_with_it_and_the_clients_own_does_not(server, monkeypatch):
    monkeypatch.setenv("THE_KEY", "s3cret")
    backend = OipBackend(f"http://127.0.0.1:{server.port}", slots=1, key=SecretSettings(env="THE_KEY"))
    await backend.start()
    task = asking(backend, request_of(fields=((b"authorization", b"Bearer mine"),)))
    peer = await server.accept()
    assert [line for line in lines(await peer.head()) if b"uthorization" in line] == [b"authorization: Bearer s3cret"]
    peer.say(HELLO)
    await task
    await backend.close()


async def test_a_resolved_address_is_asked_by_the_servers_name(server):
    backend = OipBackend(f"http://triton.invalid:{server.port}", slots=1, address="127.0.0.1")
    task = asking(backend)
    peer = await server.accept()
    assert b"host: triton.invalid:%d" % server.port in lines(await peer.head())
    peer.say(HELLO)
    await task
    await backend.close()


@pytest.mark.parametrize(("content", "wrong"), [(None, "No such file"), ("no certificate", "PEM")])
async def test_a_file_of_authorities_that_is_none(tmp_path, content, wrong):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    backend = OipBackend("https://localhost:8000", slots=1, ca=file)
    with pytest.raises(BackendError, match=wrong) as error:
        await backend.start()
    assert str(file) in str(error.value)
    assert "tls.ca" in str(error.value)


async def test_authorities_for_a_server_without_certificate(tmp_path):
    backend = OipBackend("http://localhost:8000", slots=1, ca=tmp_path / "ca.pem")
    with pytest.raises(BackendError, match="https://"):
        await backend.start()


async def test_the_systems_authorities_are_believed_without_a_file():
    backend = OipBackend("https://localhost:8000", slots=1)
    await backend.start()
    await backend.close()
    assert backend.ready
