# SPDX-License-Identifier: Apache-2.0
"""The admin socket: who may talk to it, what it does, and what nonsense costs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from backends.pool import Pool
from proxy import control
from proxy.control import Control
from proxy.endpoints import Endpoints, NotDone
from tests.fakes.fleet import PATIENCE_S, until, watched_pool

NAME = "oip:10.0.0.1:8000/base"
DRAIN = "/v1/pools/digits/endpoints/oip:10.0.0.1:8000%2Fbase/drain"


@pytest.fixture
def pool() -> Pool:
    return watched_pool(NAME, "second")[0]


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
async def served(tmp_path, pool, changed) -> AsyncIterator[Path]:
    """Where it serves."""
    path = tmp_path / "admin.sock"
    running = Control(path, Endpoints([pool], changed=changed.append, clock=lambda: 100.0))
    await running.start()
    yield path
    await running.close()
    assert not path.exists()


async def say(path: Path, data: bytes, *, ends: bool = False) -> bytes:
    """Everything that is answered."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            writer.write(data)
            if ends:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.transport.abort()


async def ask(path: Path, method: str, target: str, body: str = "") -> tuple[int, Any]:
    length = f"content-length: {len(body)}\r\n" if body else ""
    return parsed(await say(path, f"{method} {target} HTTP/1.1\r\nhost: x\r\n{length}\r\n{body}".encode()))


def parsed(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    return int(head.split()[1]), json.loads(body)


async def test_it_tells_the_pools(served, pool):
    status, told = await ask(served, "GET", "/v1/pools?of=mine")
    assert status == 200
    assert [each["name"] for each in told["pools"][0]["endpoints"]] == [NAME, "second"]


async def test_drain_and_undrain_are_done_told_and_logged_once(served, pool, changed):
    with capture_logs() as logs:
        for _ in range(2):
            status, told = await ask(served, "POST", DRAIN, body="{}")
            assert (status, told["state"], told["pool"], told["name"]) == (200, "draining", "digits", NAME)
        assert pool.endpoints[0].draining and not pool.endpoints[1].draining
        status, told = await ask(served, "POST", DRAIN.replace("/drain", "/undrain"))
        assert (status, told["state"]) == (200, "healthy")
    assert not pool.endpoints[0].draining
    assert [each["event"] for each in logs] == ["endpoint_draining", "endpoint_undrained"]
    assert logs[0]["uid"] == os.geteuid()
    assert changed == ["digits", "digits"]


@pytest.mark.parametrize(
    ("method", "target", "status", "said"),
    [
        ("GET", DRAIN, 405, "POST is what this path takes"),
        ("POST", "/v1/pools", 405, "GET is what this path takes"),
        ("GET", "/", 404, "no such path"),
        ("POST", DRAIN + "/now", 404, "no such path"),
        ("POST", DRAIN.replace("digits", "letters"), 404, "no pool is named letters"),
        ("POST", DRAIN.replace("second", "x").replace("oip", "iop"), 404, "no endpoint of pool digits is named iop"),
        ("GET", "v1/pools", 400, "not an HTTP/1.1 request"),
    ],
)
async def test_what_it_does_not_do_is_told_with_what_there_is(served, method, target, status, said):
    found, told = await ask(served, method, target)
    assert found == status and said in told["error"]
    if status == 404:
        assert told.keys() & {"paths", "pools", "endpoints"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /v1/pools HTTP/2\r\n\r\n", 400),
        (b"\xff\xfe /v1/pools HTTP/1.1\r\n\r\n", 400),
        (b"GET /v1/pools HTTP/1.1\r\n" + b"x: y\r\n" * 4000, 431),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 413),
    ],
)
async def test_nonsense_is_refused_in_good_order(served, data, status):
    assert parsed(await say(served, data))[0] == status


@pytest.mark.parametrize("data", [b"", b"GET /v1", b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nabc"])
async def test_half_a_request_is_refused_when_its_sender_ends(served, data):
    assert parsed(await say(served, data, ends=True))[0] == 400


async def test_who_says_nothing_is_hung_up_on(served, monkeypatch):
    monkeypatch.setattr(control, "EXCHANGE_S", 0.02)
    assert await say(served, b"GET /v1/pools HTTP/1.1\r\n") == b""
    monkeypatch.undo()
    assert (await ask(served, "GET", "/v1/pools"))[0] == 200


async def test_more_connections_than_it_keeps_are_turned_away(served, monkeypatch):
    monkeypatch.setattr(control, "MOST_CONNECTIONS", 1)
    reader, writer = await asyncio.open_unix_connection(served)
    writer.write(b"GET")
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(served, "GET", "/v1/pools"))[0] != 503:
            await asyncio.sleep(0.001)
    writer.write(b" /v1/pools HTTP/1.1\r\n\r\n")
    assert parsed(await reader.read())[0] == 200
    writer.transport.abort()


async def test_others_than_root_and_the_owner_are_refused(tmp_path, pool, monkeypatch):
    path = tmp_path / "admin.sock"
    running = Control(path, Endpoints([pool], changed=lambda _: None), owner=4711)
    monkeypatch.setattr(control, "_peer", lambda _: control.Peer(1, 1234))
    await running.start()
    with capture_logs() as logs:
        status, told = await ask(path, "POST", DRAIN)
    assert status == 403 and "uid 1234 may not" in told["error"]
    assert not pool.endpoints[0].draining
    assert [each["event"] for each in logs] == ["control_refused"]
    for uid in (0, 4711):
        monkeypatch.setattr(control, "_peer", lambda _, uid=uid: control.Peer(1, uid))
        assert (await ask(path, "GET", "/v1/pools"))[0] == 200
    await running.close()


def test_the_kernel_says_who_is_there():
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert control._peer(ours) == (os.getpid(), os.geteuid())


async def test_the_file_is_for_its_owner_and_group_and_a_dead_one_is_replaced(tmp_path, pool):
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    running = Control(path, Endpoints([pool], changed=lambda _: None))
    await running.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(OSError, match="another process listens there"):
        await Control(path, Endpoints([pool], changed=lambda _: None)).start()
    assert (await ask(path, "GET", "/v1/pools"))[0] == 200
    await running.close()
    await running.close()


async def test_closing_hangs_up_on_whoever_is_there(tmp_path, pool):
    path = tmp_path / "admin.sock"
    running = Control(path, Endpoints([pool], changed=lambda _: None))
    await running.start()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET")
    await until(lambda: "1 in flight" in repr(running))
    await running.close()
    assert await reader.read() == b""
    writer.transport.abort()
    assert "stopped, 0 in flight" in repr(running)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_refused(data):
    async def read() -> None:
        reader = asyncio.StreamReader(limit=control.LONGEST_HEAD)
        reader.feed_data(data)
        reader.feed_eof()
        try:
            method, target = await control._request(reader)
        except NotDone as refusal:
            assert refusal.status in (400, 413, 431) and refusal.document["error"]
        else:
            assert method is not None and target.startswith("/")

    asyncio.run(read())


class Upgradable:
    """A gateway that can replace itself, once."""

    def __init__(self) -> None:
        self.state = {"state": "none", "number": 0}

    def begin(self) -> dict[str, object]:
        if self.state["number"]:
            raise NotDone(409, "an upgrade is going on")
        self.state = {"state": "starting", "number": 1}
        return self.state

    def status(self) -> dict[str, object]:
        return self.state


async def test_an_upgrade_is_begun_and_looked_at_where_there_is_one(tmp_path, pool, changed, served):
    path = tmp_path / "upgradable.sock"
    commands = Endpoints([pool], changed=changed.append, clock=lambda: 100.0)
    running = Control(path, commands, upgrades=Upgradable())
    await running.start()
    assert await ask(path, "GET", "/v1/upgrade") == (200, {"state": "none", "number": 0})
    assert await ask(path, "POST", "/v1/upgrade") == (200, {"state": "starting", "number": 1})
    assert (await ask(path, "POST", "/v1/upgrade"))[0] == 409
    assert (await ask(path, "DELETE", "/v1/upgrade"))[0] == 405
    assert (await ask(served, "POST", "/v1/upgrade"))[0] == 404
    await running.close()
