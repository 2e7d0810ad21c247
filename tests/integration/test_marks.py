# SPDX-License-Identifier: Apache-2.0
"""What the gateway's packets to its clients look like on the wire, and what it tells them of theirs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane.oip import encode_request
from inferlane.wire import Header, Type, decode, encode, fragments
from proxy.commands.replies import summary
from qos.marking import received_ds_field
from qos.settings import BUILT_IN_CLASSES, class_table
from tests.fakes import models
from tests.fakes.capture import Wire, capturing
from tests.fakes.live_gateway import LiveGateway, eventually, live_gateway
from tests.fakes.raw_quic import Exchange, RawClient, http3, section
from tests.fakes.relay import relaying

INFER = b"/v2/models/identity/infer"
SCHEMES = ("https", "quic", "quic+datagram", "udp")
HOSTS = {"127.0.0.1": 4, "::1": 6}
EF, AF21, AF11, LE = 46 << 2, 18 << 2, 10 << 2, 1 << 2
"""Whole DS fields: the ECN bits are 0, Not-ECT, for aioquic speaks no ECN."""
LONG_S = 30.0
CONFIG = """\
version: 1
classes:
  - {{name: realtime, dscp: EF, deadline: 60s}}
  - {{name: interactive, dscp: AF21, deadline: 60s, default: true}}
  - {{name: batch, dscp: AF11, deadline: 60s}}
  - {{name: background, dscp: LE, deadline: 60s}}
trust: {{class_from: ["127.0.0.0/8", "::1/128"]}}
listeners:
  - {{name: main, bind: ["127.0.0.1:0", "[::1]:0"], tls: development, max_class: realtime}}
  - {{name: usual, bind: ["127.0.0.1:0"], tls: development}}
pools:
  - {{name: identity, model: identity, endpoints: [{{onnx: {folder}/model.onnx}}]}}
admin: {{bind: "127.0.0.1:0"}}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[LiveGateway]:
    models.saved(models.identity("FP32", ("rows", "columns")), tmp_path)
    conf = tmp_path / "gateway.yaml"
    conf.write_text(CONFIG.format(folder=tmp_path))
    async with live_gateway(conf) as started:
        yield started


@pytest.fixture
def wire() -> Iterator[Wire]:
    with capturing() as seen:
        yield seen


@pytest.fixture(params=HOSTS)
def address(request: pytest.FixtureRequest, gateway: LiveGateway) -> tuple[str, int]:
    """The listener's, over either version of IP."""
    return next(each for each in gateway.gateway.doors[0].bound if each[0] == request.param)


def ask(client: RawClient, traffic_class: str, values: int = 4) -> Exchange:
    body, json_length = encode_request({"x": np.zeros((1, values), np.float32)})
    length = b"%d" % (json_length or len(body))
    fields = [(b"inferlane-class", traffic_class.encode()), (b"inference-header-content-length", length)]
    return client.send(section(INFER, *fields), body)


async def asked(client: RawClient, traffic_class: str) -> None:
    """Once more, and the acknowledgements after it."""
    assert (await ask(client, traffic_class).over()).status == 200
    await client.ping()


@asynccontextmanager
async def marked(ds_field: int, address: tuple[str, int]) -> AsyncIterator[socket.socket]:
    """A plain UDP client that marks what it sends and sees the marks of what comes."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, ds_field)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ds_field)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.settimeout(LONG_S)
        sock.connect(address)
        yield sock


async def heard(sock: socket.socket) -> tuple[Header, int]:
    """The next datagram's head and DS field."""
    data, parts, _, _ = await asyncio.to_thread(sock.recvmsg, 2048, 100)
    return decode(data)[0], received_ds_field(parts)


@pytest.mark.needs_root
async def test_a_connection_has_one_mark_from_its_handshake_to_its_goodbye(
    gateway: LiveGateway, address: tuple[str, int], wire: Wire
) -> None:
    port = address[1]
    async with http3(address) as client:
        assert wire.ds_fields(by=port) == {EF}  # the listener's max_class
        for traffic_class, mark in (("background", LE), ("batch", AF11), ("realtime", AF11), ("background", AF11)):
            await client.ping()  # nothing of the last request is on its way any more
            wire.forget()
            await asked(client, traffic_class)
            assert wire.ds_fields(by=port) == {mark}, traffic_class
            assert {each.version for each in wire.packets(by=port)} == {HOSTS[address[0]]}
        wire.forget()
        for door in gateway.gateway.doors:
            door.close()
        assert wire.ds_fields(by=port) == {AF11}  # CONNECTION_CLOSE
        gateway.gateway.doors.clear()


@pytest.mark.needs_root
async def test_a_listener_without_a_max_class_has_the_default_class_s_mark(gateway: LiveGateway, wire: Wire) -> None:
    usual = gateway.gateway.doors[1].bound[0]
    async with http3(usual) as client:
        assert wire.ds_fields(by=usual[1]) == {AF21}
        wire.forget()
        await asked(client, "realtime")  # held at the default class
        assert wire.ds_fields(by=usual[1]) == {AF21}


@pytest.mark.needs_root
async def test_a_version_that_nobody_speaks_is_answered_under_the_listener_s_mark(
    address: tuple[str, int], wire: Wire
) -> None:
    async with marked(0, address) as sock:
        sock.send((b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(8)).ljust(1200, b"\0"))
        answer = await asyncio.to_thread(sock.recv, 2048)
    assert answer[1:5] == bytes(4)  # version negotiation; the gateway sends no Retry
    assert wire.ds_fields(by=address[1]) == {EF}


@pytest.mark.needs_root
async def test_what_is_sent_again_and_what_follows_the_client_keep_the_mark(gateway: LiveGateway, wire: Wire) -> None:
    port = gateway.address[1]
    async with relaying(gateway.address) as relay, http3(relay.address) as client:
        await asked(client, "batch")
        relay.losing = True
        wire.forget()
        asking = ask(client, "batch", 2000)

        async def lost() -> bool:
            return relay.lost > 12

        await eventually(lost)  # the reply is eight packets: what else there is, is probes and what they repeat
        relay.losing = False
        assert (await asking.over()).status == 200
        assert wire.ds_fields(by=port) == {AF11}
        before = relay.port
        await relay.move()
        wire.forget()
        await asked(client, "batch")
        assert relay.port != before
        assert {each.ds_field for each in wire.packets(by=port, to=relay.port)} == {AF11}


@pytest.mark.needs_root
async def test_a_reload_s_mark_is_on_the_next_packet_and_none_is_lost(gateway: LiveGateway, wire: Wire) -> None:
    port = gateway.address[1]
    classes = class_table([each.model_copy(update={"dscp": 34}) for each in BUILT_IN_CLASSES if each.name == "batch"])
    async with http3(gateway.address) as client:
        await asked(client, "batch")
        asking = [ask(client, "batch") for _ in range(20)]
        gateway.gateway.marks.replace(classes, {"main": None})
        wire.forget()
        assert [(await each.over()).status for each in asking] == [200] * 20
        await asked(client, "batch")
        assert wire.ds_fields(by=port) == {34 << 2}


async def test_a_datagram_s_reply_is_marked_by_its_own_class_and_what_comes_before_by_its_listener_s(
    address: tuple[str, int],
) -> None:
    body, json_length = encode_request({"x": np.zeros((1, 4), np.float32)})
    asking = Header(
        type=Type.REQUEST, request_id=1, model="identity", json_length=json_length or 0, total_length=len(body)
    )
    async with marked(0, address) as sock:
        sock.send(fragments(asking, body)[0])
        challenge, mark = await heard(sock)
        assert (challenge.type, mark) == (Type.CHALLENGE, EF)
        sock.send(encode(Header(type=Type.PING, request_id=9, cookie=challenge.cookie)))
        pong, mark = await heard(sock)
        assert (pong.type, mark) == (Type.PONG, EF)
        for number, (traffic_class, expected) in enumerate(
            [("realtime", EF), ("batch", AF11), ("background", LE), ("realtime", EF), (None, AF21)]
        ):
            request = replace(asking, request_id=10 + number, class_name=traffic_class, cookie=challenge.cookie)
            for _ in range(2):  # the second time it is repeated from memory
                sock.send(fragments(request, body)[0])
                reply, mark = await heard(sock)
                assert (reply.type, reply.request_id, mark) == (Type.REPLY, 10 + number, expected)


@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
async def test_the_client_s_ecn_does_not_blur_its_dscp_and_is_not_answered(address: tuple[str, int], ecn: int) -> None:
    body, json_length = encode_request({"x": np.zeros((1, 4), np.float32)})
    asking = Header(type=Type.REQUEST, request_id=1, model="identity", json_length=json_length or 0)
    async with marked(EF | ecn, address) as sock:
        sock.send(fragments(asking, body)[0])
        challenge, _ = await heard(sock)
        sock.send(fragments(replace(asking, cookie=challenge.cookie), body)[0])
        reply, mark = await heard(sock)
    assert (reply.status, reply.dscp) == (200, 46)
    assert mark == AF21  # Not-ECT: nobody here would read the echo


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_reply_tells_the_dscp_that_its_request_came_with(gateway: LiveGateway, scheme: str) -> None:
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        for traffic_class, dscp in (("realtime", 46), ("background", 1)):
            reply = await client.infer("identity", {"x": np.zeros((1, 4), np.float32)}, cls=traffic_class, timeout=30)
            assert (reply.dscp_sent, reply.dscp_seen, reply.served_class) == (dscp, dscp, traffic_class)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_path_that_bleaches_marks_is_seen(gateway: LiveGateway, scheme: str) -> None:
    async with relaying(gateway.address) as relay:
        url = "{}://{}:{}".format(scheme, *relay.address)
        async with inferlane.Client(url, insecure=True) as client:
            reply = await client.infer("identity", {"x": np.zeros((1, 4), np.float32)}, cls="realtime", timeout=30)
    assert "dscp: sent EF, seen DF: bleached on the path" in summary(reply)


@pytest.mark.needs_root
async def test_datagrams_in_a_connection_share_its_mark(gateway: LiveGateway, wire: Wire) -> None:
    port = gateway.address[1]
    async with inferlane.Client(gateway.url("quic+datagram"), insecure=True) as client:
        await client.infer("identity", {"x": np.zeros((1, 4), np.float32)}, cls="background", timeout=30)
        wire.forget()
        await client.infer("identity", {"x": np.zeros((1, 4), np.float32)}, cls="background", timeout=30)
        assert wire.ds_fields(by=port) == {LE}
