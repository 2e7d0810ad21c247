# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket
from time import monotonic

import pytest

from backends.body import Body
from backends.messages import Api, Reply, Request
from backends.remote.datagram import MOST_BODY, DatagramBackend
from inferlane.errors import Reason, Refused
from inferlane.wire import Header, Type, encode
from tests.fakes.asking import BATCH, REALTIME, SOON, asking, request_of


@pytest.fixture
async def backend(udp):
    backend = DatagramBackend(f"127.0.0.1:{udp.port}")
    await backend.start()
    yield backend
    await backend.close()


async def refused(backend: DatagramBackend, request: Request) -> Refused:
    """How it is refused."""
    with pytest.raises(Refused) as caught:
        await backend.infer(request)
    return caught.value


async def test_a_request_and_its_reply(backend, udp):
    request = request_of(b"{}data", json_length=2, version="3")
    task = asking(backend, request)
    header, body = await udp.greet()
    assert (header.type, header.model, header.version, header.class_name) == (Type.REQUEST, "magika", "3", "realtime")
    assert (header.json_length, body) == (2, b"{}data")
    assert 59_000_000 < header.remaining_us <= 60_000_000
    udp.reply(header, b"{}more", json_length=2, queue_us=10, backend_us=20, compute_us=1500)
    reply = await task
    assert reply == Reply(
        status=200,
        body=b"{}more",
        json_length=2,
        fields=((b"content-type", b"application/octet-stream"),),
        compute_s=0.0015,
    )
    assert request.timeline.received < request.timeline.first_byte <= monotonic()


async def test_a_reply_that_is_all_json(backend, udp):
    task = asking(backend, request_of())
    header, _ = await udp.greet()
    udp.reply(header, b"{}", status=404)
    reply = await task
    assert (reply.status, reply.json_length, reply.compute_s) == (404, None, None)
    assert reply.fields == ((b"content-type", b"application/json"),)


async def test_each_class_has_its_own_socket(backend, udp):
    ports = []
    for traffic_class in (REALTIME, BATCH, REALTIME):
        task = asking(backend, request_of(traffic_class=traffic_class))
        header, _ = await (udp.receive() if len(ports) == 2 else udp.greet())
        ports.append(udp.client[1])
        udp.reply(header, b"{}")
        await task
    assert ports[0] == ports[2] != ports[1]
    assert "<Lane realtime, 0 in flight>, <Lane batch, 0 in flight>" in repr(backend)


async def test_a_body_that_arrives_late_is_waited_for(backend, udp):
    body = Body(limit=100)
    task = asking(backend, request_of(body))
    body.feed(b"one ", ended=False)
    body.feed(b"two", ended=True)
    header, payload = await udp.greet()
    assert payload == b"one two"
    udp.reply(header, b"{}")
    await task


async def test_a_body_that_never_comes_meets_the_deadline(backend, udp):
    refusal = await refused(backend, request_of(Body(limit=100), timeout_s=SOON))
    assert refusal.reason is Reason.DEADLINE
    assert udp.waiting == 0


async def test_a_body_that_the_client_gives_up(backend):
    body = Body(limit=100)
    body.fail(Refused(Reason.CANCELLED))
    assert (await refused(backend, request_of(body))).reason is Reason.CANCELLED


def arriving(size: int) -> Body:
    body = Body(limit=10 * size)
    body.feed(b"x" * size, ended=False)
    return body


@pytest.mark.parametrize("body", [b"x" * (MOST_BODY - 100), b"x" * (MOST_BODY + 1), arriving(MOST_BODY + 1)])
async def test_a_body_that_does_not_fit_is_refused_with_the_remedy(backend, udp, body):
    refusal = await refused(backend, request_of(body))
    assert (refusal.reason, refusal.status) == (Reason.USE_STREAM, 413)
    assert "`oip:` endpoint" in refusal.detail
    assert udp.waiting == 0


@pytest.mark.parametrize(
    ("more", "wrong"),
    [({"model": "m" * 256}, "name"), ({"model": "a\nb"}, "control"), ({"json_length": 3}, "json_length")],
)
async def test_what_the_wire_cannot_carry_is_the_clients_mistake(backend, more, wrong):
    refusal = await refused(backend, request_of(**more))
    assert refusal.reason is Reason.BAD_REQUEST
    assert wrong in refusal.detail


async def test_a_refusal_passes(backend, udp):
    task = asyncio.ensure_future(refused(backend, request_of()))
    header, _ = await udp.greet()
    udp.reply(header, b"", type=Type.ERROR, reason=Reason.QUEUE_FULL.code, status=503, retry_after_ms=100)
    refusal = await task
    assert (refusal.reason, refusal.retry_after_s) == (Reason.QUEUE_FULL, 0.1)


async def test_silence_is_followed_by_a_new_socket(backend, udp):
    assert (await refused(backend, request_of(timeout_s=SOON))).reason is Reason.DEADLINE
    await udp.receive()
    before = udp.client
    task = asking(backend, request_of())
    header, _ = await udp.greet()
    assert udp.client != before
    udp.reply(header, b"{}")
    await task


async def test_a_closed_port_and_a_server_that_comes_back(backend, udp):
    port = udp.port
    udp.close()
    await asyncio.sleep(0)
    refusal = await refused(backend, request_of())
    assert (refusal.reason, refusal.status) == (Reason.BACKEND_FAILED, 503)
    await udp.start(port)
    task = asking(backend, request_of())
    header, _ = await udp.greet()
    udp.reply(header, b"{}")
    assert (await task).status == 200


async def test_requests_that_open_a_lane_together_share_it(backend, udp, monkeypatch):
    async def look_up(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, tuple[str, int]]]:
        await asyncio.sleep(0)
        return [(socket.AF_INET, (host, port))]

    monkeypatch.setattr("backends.remote.lane.resolve", look_up)
    tasks = [asking(backend, request_of()) for _ in range(3)]
    clients = set()
    for _ in tasks:
        header, _ = await udp.receive()
        clients.add(udp.client)
        udp.reply(header, b"{}")
    await asyncio.gather(*tasks)
    assert len(clients) == 1


async def test_after_a_failure_the_next_address_of_a_name_has_its_turn(backend, udp, monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()

    async def look_up(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, nobody), (socket.AF_INET, (host, port))]

    monkeypatch.setattr("backends.remote.lane.resolve", look_up)
    assert (await refused(backend, request_of())).status == 503
    task = asking(backend, request_of())
    header, _ = await udp.greet()
    udp.reply(header, b"{}")
    assert (await task).status == 200


async def test_closing_fails_what_is_in_flight(backend, udp):
    task = asking(backend, request_of())
    await udp.receive()
    await backend.close()
    with pytest.raises(Refused):
        await task


async def test_metadata_has_no_datagram(backend):
    with pytest.raises(Refused, match="oip:") as caught:
        await backend.metadata("magika", "", deadline=monotonic() + 60)
    assert caught.value.reason is Reason.NOT_FOUND


async def test_a_probe_is_a_ping_and_not_a_request(backend, udp):
    assert backend.api is Api.OIP
    probing = asyncio.ensure_future(backend.probe(deadline=monotonic() + 60))
    header, _ = await udp.receive()
    assert header.type is Type.PING
    udp.say(encode(Header(type=Type.PONG, request_id=header.request_id)))
    await probing
    task = asking(backend, request_of())
    request, _ = await udp.receive()
    assert request.type is Type.REQUEST
    udp.reply(request, b"{}")
    await task


async def test_a_probe_that_nobody_answers_has_failed_and_the_next_has_a_new_socket(backend, udp):
    with pytest.raises(Refused):
        await backend.probe(deadline=monotonic() + SOON)
    await udp.receive()
    before = udp.client
    probing = asyncio.ensure_future(backend.probe(deadline=monotonic() + 60))
    header, _ = await udp.receive()
    assert udp.client != before
    udp.challenge(header)
    await probing
