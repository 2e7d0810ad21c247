# SPDX-License-Identifier: Apache-2.0
"""A whole gateway whose kernel or device refuses what it asks: no room, no trains, a path that became narrow."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy.certificate import development_certificate
from proxy.listeners import door
from proxy.listeners.bound import bind_address
from proxy.sockets.linux import UDP_SEGMENT
from tests.fakes.live_gateway import PATIENCE_S, LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.namespaces import Host, joined
from tests.fakes.numbered_oip import INFER, LONG, MIB, answer_to, body_of, numbered_oip, ran_once
from tests.fakes.quiet_log import Line, quiet_log
from tests.fakes.raw_quic import http3
from tests.fakes.scripted_oip import Asked, ScriptedOip


class Refusing:
    """A gateway's UDP socket whose kernel says no when `refuses` names an error for what it sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.refuses: Callable[[bool], int] = lambda train: 0
        """Of whether it is a train: the error, or 0."""
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendto(self, datagram: bytes, address: Any) -> int:
        self._ask(train=False)
        return self._sock.sendto(datagram, address)

    def sendmsg(self, datagrams: Any, parts: Any, flags: int, address: Any) -> int:
        self._ask(train=any(kind == UDP_SEGMENT for _, kind, _ in parts))
        return self._sock.sendmsg(datagrams, parts, flags, address)

    def _ask(self, *, train: bool) -> None:
        if number := self.refuses(train):
            self.refused += 1
            raise OSError(number, os.strerror(number))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    async with numbered_oip() as server:
        yield server


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    with quiet_log() as lines:
        yield lines


@pytest.fixture
async def gateway(server: ScriptedOip, lines: list[Line], tmp_path: Path) -> AsyncIterator[LiveGateway]:
    async with live_gateway(write_config(tmp_path, oip_pool(server.port, slots=64))) as gateway:
        yield gateway


@contextmanager
def kernel_of(gateway: LiveGateway) -> Iterator[Refusing]:
    """Between its socket and the kernel, until the block ends."""
    (side,) = gateway.gateway.doors[0]._sides
    sender = side.socket._sender
    sock = sender._sock
    sender._sock = refusing = Refusing(sock)  # type: ignore[assignment]
    try:
        yield refusing
    finally:
        sender._sock = sock


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EAGAIN])
async def test_a_device_without_room_every_third_time_costs_no_answer(
    gateway: LiveGateway, server: ScriptedOip, number: int
) -> None:
    with kernel_of(gateway) as kernel:
        turns = iter(range(1 << 30))
        kernel.refuses = lambda _: number * (next(turns) % 3 == 0)
        async with http3(gateway.address) as client:
            asked = [client.send(INFER, body_of(each)) for each in range(20)]
            for each, exchange in enumerate(asked):
                assert bytes((await exchange.over()).body) == answer_to(each)
        assert kernel.refused > 20
    ran_once(server, range(20))
    await gateway.nothing_in_flight()


async def test_a_device_without_room_for_a_while_is_waited_for(gateway: LiveGateway, server: ScriptedOip) -> None:
    """What it could not take is dropped within its bound, and sent again by those who need it."""
    async with http3(gateway.address) as client:
        assert (await client.ask(INFER, body_of(0))).status == 200
        with kernel_of(gateway) as kernel:
            kernel.refuses = lambda _: errno.ENOBUFS
            asked = [client.send(INFER, body_of(each, 100)) for each in range(1, 9)]
            await gateway.reaches("inferlane_requests_total", 9)
            await asyncio.sleep(0.5)
            assert not any(each.ended for each in asked) and kernel.refused > 10
            kernel.refuses = lambda _: 0
            for each, exchange in enumerate(asked, start=1):
                assert bytes((await exchange.over()).body) == answer_to(each)
    ran_once(server, range(9))


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
async def test_a_device_that_refuses_trains_gets_datagrams(
    gateway: LiveGateway, server: ScriptedOip, lines: list[Line], number: int
) -> None:
    with kernel_of(gateway) as kernel:
        kernel.refuses = lambda train: number * train
        async with http3(gateway.address) as client:
            for each in range(5):
                assert bytes((await client.ask(INFER, body_of(each))).body) == answer_to(each)
        assert kernel.refused == 1  # no other was tried
    ran_once(server, range(5))
    (told,) = (line for line in lines if line["event"] == "trains_refused")
    assert told["why"] == os.strerror(number) and "ethtool" in told["remedy"]
    assert await gateway.value("inferlane_datagram_trains_total", outcome="refused") == 1


@pytest.mark.needs_root
@pytest.mark.needs_gtlsclient
@pytest.mark.parametrize(("version", "mtu"), [(4, 1280), (6, 1280), (4, 1000)])
async def test_a_path_that_becomes_narrow(
    tmp_path: Path, server: ScriptedOip, lines: list[Line], monkeypatch: pytest.MonkeyPatch, version: int, mtu: int
) -> None:
    """1,200 bytes of QUIC fit every path of IPv6 (RFC 8200), and its trains go on as datagrams; below, IP cuts them."""
    with joined("shrinking") as (left, right):
        monkeypatch.setattr(
            door, "bind_address", lambda *args, **named: left.call(partial(bind_address, *args, **named))
        )
        address = left.v4 if version == 4 else left.v6
        tls = "tls: {{cert: {}, key: {}}}".format(*development_certificate(tmp_path))
        conf = write_config(tmp_path, oip_pool(server.port), listener=tls)
        host = f"[{address}]" if version == 6 else address
        conf.write_text(conf.read_text().replace("127.0.0.1:0", f"{host}:0", 1))
        answer = server.answer

        async def narrow(asked: Asked) -> tuple[int, bytes]:
            left.ip(f"link set eth0 mtu {mtu}")
            return await answer(asked)

        server.answer = narrow
        async with live_gateway(conf) as gateway:
            body = await post(right, gateway.address, tmp_path)
            assert body == answer_to(5, LONG)
            assert await gateway.value("inferlane_datagrams_dropped_total", reason="too_long") == 0
            assert await gateway.value("inferlane_datagram_trains_total", outcome="refused") == 0
    ran_once(server, [5])


async def post(host: Host, to: tuple[str, int], folder: Path) -> bytes:
    """A MiB up, with packets that fit, and what came down."""
    (folder / "request").write_bytes(body_of(5, MIB))
    address, port = to
    url = f"https://localhost:{port}/v2/models/m/infer"
    command = "gtlsclient -q --exit-on-all-streams-close --no-quic-dump --no-http-dump --max-udp-payload-size=1200"
    command += f" --handshake-timeout=30s -m POST --data={folder}/request --download={folder} {address} {port} {url}"
    process = await asyncio.create_subprocess_exec(*host.command(command), stdout=DEVNULL, stderr=DEVNULL)
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 0
    return (folder / "infer").read_bytes()
