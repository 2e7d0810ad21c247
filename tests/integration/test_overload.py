# SPDX-License-Identifier: Apache-2.0
"""More requests than places: bounded, in the order of the classes, and told the same on every transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane.errors import Reason, Refused
from tests.fakes.live_gateway import LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.raw_quic import Exchange, RawClient, http3, section
from tests.fakes.raw_server import Peer, RawServer

INFER = b"/v2/models/m/infer"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
SCHEMES = ("https", "quic", "quic+datagram", "udp")
MAX_REQUESTS, MAX_BYTES = 300, 8 << 20
STREAMS = 120  # of one connection, of the 128 that it may have
# One that leaves the queue long before its deadline, one whose deadline comes first.
CLASSES = """
  - {name: realtime, dscp: EF, deadline: 60s, gate: {queue: 100ms}}
  - {name: interactive, dscp: AF21, deadline: 60s, default: true, gate: {requests: 300, bytes: 8MiB}}
  - {name: batch, dscp: AF11, deadline: 60s}
  - {name: brief, dscp: LE, deadline: 200ms}
"""


@pytest.fixture
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def gateway(backend: RawServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """One place."""
    async with live_gateway(write_config(tmp_path, oip_pool(backend.port, slots=1), classes=CLASSES)) as started:
        yield started


@pytest.fixture
async def client(gateway: LiveGateway) -> AsyncIterator[RawClient]:
    async with http3(gateway.address) as connected:
        yield connected


class Occupied:
    """The one place, taken by a request that the backend has not answered."""

    def __init__(self, asking: Exchange, peer: Peer) -> None:
        self.asking = asking
        self.peer = peer

    async def ends(self) -> None:
        self.peer.say(ANSWER)
        assert (await self.asking.over()).status == 200


@pytest.fixture
async def occupied(client: RawClient, backend: RawServer) -> Occupied:
    asking = client.send(section(INFER), b"{}")
    peer = await backend.accept()
    await peer.request()
    return Occupied(asking, peer)


def ask(client: RawClient, traffic_class: str, *, name: bytes = b"") -> Exchange:
    return client.send(section(INFER, (b"inferlane-class", traffic_class.encode()), (b"x-name", name)), b"{}")


async def waiting(gateway: LiveGateway, count: int, **labels: str) -> None:
    await gateway.reaches("inferlane_gate_waiting", count, **labels)


async def refusal(gateway: LiveGateway, scheme: str, traffic_class: str) -> Refused:
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        with pytest.raises(Refused) as caught:
            await client.infer("m", {"x": np.zeros(4, np.float32)}, cls=traffic_class, timeout=30)
    return caught.value


async def test_places_go_to_the_highest_class_and_inside_it_to_the_first(
    gateway: LiveGateway, client: RawClient, backend: RawServer, occupied: Occupied
) -> None:
    order = [("batch", b"1"), ("interactive", b"2"), ("batch", b"3"), ("interactive", b"4")]
    asked = []
    for count, (traffic_class, name) in enumerate(order, 1):
        asked.append(ask(client, traffic_class, name=name))
        await waiting(gateway, count)
    await waiting(gateway, 2, **{"class": "batch"})
    await occupied.ends()
    peer = occupied.peer
    for name in (b"2", b"4", b"1", b"3"):
        if name == b"1":
            peer = await backend.accept()  # each class has connections of its own to the backend
        head, _ = await peer.request()
        assert b"x-name: " + name in head
        assert await gateway.value("inferlane_in_flight") == 1
        peer.say(ANSWER)
    assert [(await each.over()).status for each in asked] == [200] * 4
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_class_waits_no_longer_than_it_may(gateway: LiveGateway, occupied: Occupied, scheme: str) -> None:
    refused = await refusal(gateway, scheme, "realtime")
    assert (refused.status, refused.reason) == (429, Reason.QUEUE_TIMEOUT)
    assert refused.retry_after_s == pytest.approx(0.1)
    assert "0.1 s that class realtime waits" in refused.detail
    await waiting(gateway, 0)
    await occupied.ends()
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_deadline_that_passes_in_the_queue(gateway: LiveGateway, occupied: Occupied, scheme: str) -> None:
    refused = await refusal(gateway, scheme, "brief")
    assert refused.status == 504
    assert refused.reason in (Reason.DEADLINE, Reason.TOO_LATE)  # the latter where the client's round trip is known
    await waiting(gateway, 0)
    await occupied.ends()
    await gateway.nothing_in_flight()


async def test_a_refusal_says_when_to_come_back(gateway: LiveGateway, client: RawClient, occupied: Occupied) -> None:
    reply = await ask(client, "realtime").over()
    assert (reply.status, reply.head[b"retry-after"], reply.head[b"inferlane-class"]) == (429, b"1", b"realtime")
    assert (reply.document["reason"], reply.document["retry_after_ms"]) == ("queue_timeout", 100)
    await occupied.ends()


async def test_bytes_are_bounded(gateway: LiveGateway, client: RawClient, occupied: Occupied) -> None:
    """What a body will have counts, not what is here of it."""
    length = (b"content-length", b"%d" % (MAX_BYTES - 1))
    first = client.send(section(INFER, length), b"part", end=False)
    await waiting(gateway, 1)
    small = client.send(section(INFER), b"{}")
    second = await client.send(section(INFER), b"{}").over()
    assert (second.status, second.document["reason"]) == (429, "queue_full")
    assert b"retry-after" in second.head
    await waiting(gateway, 1)
    assert small.status == 429
    first.cancel()
    await waiting(gateway, 0)
    await occupied.ends()
    assert (await answered(client, occupied.peer)).status == 200
    await gateway.nothing_in_flight()


async def answered(client: RawClient, peer: Peer) -> Exchange:
    """One more request, and the backend answers it."""
    asking = client.send(section(INFER), b"{}")
    await peer.request()
    peer.say(ANSWER)
    return await asking.over()


async def test_a_body_that_never_ends_holds_no_place(
    gateway: LiveGateway, client: RawClient, occupied: Occupied
) -> None:
    """It meets its deadline; who has sent everything is served meanwhile."""
    await occupied.ends()
    endless = client.send(section(INFER, (b"inferlane-timeout", b"500ms")), b"part", end=False)
    assert (await answered(client, occupied.peer)).status == 200
    assert await gateway.value("inferlane_in_flight") == 0
    await endless.over()
    assert (endless.status, endless.document["reason"]) == (504, "deadline")
    assert "body" in endless.document["detail"]
    await client.until(lambda: endless.stopped is not None)
    await gateway.nothing_in_flight()


async def test_long_bodies_that_wait_do_not_keep_out_the_one_that_is_served(
    gateway: LiveGateway, client: RawClient, backend: RawServer, occupied: Occupied
) -> None:
    """Together they are longer than the connection's window, and the client sends them in turns."""
    size = 400 * 1024
    asked = [client.open(section(INFER, (b"content-length", b"%d" % size)), bytes(size)) for _ in range(16)]
    client.transmit()
    await waiting(gateway, len(asked))
    await occupied.ends()
    peer = occupied.peer
    for _ in asked:
        _, body = await peer.request()
        assert len(body) == size
        peer.say(ANSWER)
    assert [(await each.over()).status for each in asked] == [200] * len(asked)
    await gateway.nothing_in_flight()


async def test_requests_are_bounded(gateway: LiveGateway, occupied: Occupied) -> None:
    too_many = 20
    async with AsyncExitStack() as stack:
        left, asked = MAX_REQUESTS + too_many, []
        while left:
            client = await stack.enter_async_context(http3(gateway.address))
            count = min(left, STREAMS)
            asked += [(client, ask(client, "interactive")) for _ in range(count)]
            await client.ping()
            left -= count
        await waiting(gateway, MAX_REQUESTS)
        refused = [each for client, each in asked if each.ended]
        assert [(each.status, each.document["reason"]) for each in refused] == [(429, "queue_full")] * too_many
        for scheme in SCHEMES:
            full = await refusal(gateway, scheme, "interactive")
            assert (full.status, full.reason) == (429, Reason.QUEUE_FULL)
            assert full.retry_after_s is not None and full.retry_after_s > 0
    # Their connections are closed: nobody waits any more.
    await waiting(gateway, 0)
    await occupied.ends()
    await gateway.nothing_in_flight()
