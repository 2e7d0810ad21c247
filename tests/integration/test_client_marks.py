# SPDX-License-Identifier: Apache-2.0
"""What the SDK's packets look like on the wire: one connection a class, all of its packets with that class's mark."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from inferlane import oip
from inferlane.blocking import BlockingClient
from inferlane.client import Client
from inferlane.wire import UNTIL_FIN, Header, Type, encode
from tests.fakes.capture import Wire, capturing
from tests.fakes.quic_gateway import Asked, quic_gateway
from tests.fakes.udp_gateway import Heard, udp_gateway

pytestmark = pytest.mark.needs_root

FIELDS = {"realtime": 0xB8, "interactive": 0x48, "batch": 0x28, "background": 0x04, "of-my-own": 34 << 2, None: 0}
"""DSCP and ECN, as the header has them; the ECN bits are 0."""
INPUTS = {"x": np.zeros((1, 700), np.float32)}


BODY, JSON_LENGTH = oip.encode_reply("m", "1", {"y": np.zeros((1, 2), np.float32)}, binary=True)
REPLY = {"type": Type.REPLY, "status": 200, "class_name": "realtime", "json_length": JSON_LENGTH}


def by_http(asked: Asked) -> None:
    asked.respond(200, {b"inference-header-content-length": b"%d" % JSON_LENGTH}, BODY)


def by_stream(asked: Asked) -> None:
    asked.send(encode(Header(request_id=asked.header.request_id, total_length=UNTIL_FIN, **REPLY)) + BODY)


def by_datagram(asked: Asked) -> None:
    asked.datagram(body=BODY, **REPLY)


def by_udp(heard: Heard) -> None:
    heard.send(body=BODY, **REPLY)


async def ask_as_every_class(client: Client, wire: Wire, port: int) -> None:
    """Twice, in turns. The first question of a class opens its connection, and the second finds it."""
    opened: dict[int, str | None] = {}
    for _ in range(2):
        for name in FIELDS:
            await client.infer("m", INPUTS, cls=name, timeout=30)
            for each in wire.packets(to=port):
                opened.setdefault(each.source, name)
    assert list(opened.values()) == list(FIELDS)
    for source, name in opened.items():
        assert wire.ds_fields(by=source) == {FIELDS[name]}, name


@pytest.mark.parametrize(
    ("scheme", "answer"), [("https", by_http), ("quic", by_stream), ("quic+datagram", by_datagram)]
)
async def test_quic_marks_the_connection_of_each_class_from_its_first_packet(scheme, answer, certificates):
    async with quic_gateway(answer, (certificates.cert, certificates.key)) as gateway:
        url = f"{scheme}://127.0.0.1:{gateway.port}"
        async with Client(url, ca=certificates.ca, dscp={"of-my-own": 34}) as client:
            with capturing() as wire:
                await ask_as_every_class(client, wire, gateway.port)


@pytest.mark.parametrize(
    ("bound", "named"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("127.0.0.1", "[::ffff:127.0.0.1]")],
    ids=["IPv4", "IPv6", "IPv4-mapped"],
)
async def test_udp_marks_every_datagram(bound, named):
    with udp_gateway(by_udp, host=bound) as gateway, capturing() as wire:
        async with Client(f"udp://{named}:{gateway.port}", dscp={"of-my-own": 34}) as client:
            await ask_as_every_class(client, wire, gateway.port)


async def test_a_client_that_waits_marks_too():
    with udp_gateway(by_udp) as gateway, capturing() as wire:

        def ask() -> None:
            with BlockingClient(f"udp://127.0.0.1:{gateway.port}") as client:
                for name in ("realtime", "background"):
                    client.infer("m", INPUTS, cls=name, timeout=30)

        await asyncio.to_thread(ask)
        marks = [each.ds_field for each in wire.packets(to=gateway.port)]
    assert list(dict.fromkeys(marks)) == [0xB8, 0x04]
