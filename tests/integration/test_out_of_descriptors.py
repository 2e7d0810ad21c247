# SPDX-License-Identifier: Apache-2.0
"""`inferlane run` whose worker is out of file descriptors: it serves whom it has, says so at times, and recovers."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes import programs
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import eventually, oip_pool, parse_address, write_config
from tests.fakes.numbered_oip import INFER, answer_to, body_of, numbered_oip
from tests.fakes.programs import Program
from tests.fakes.raw_quic import http3
from tests.fakes.scripted_oip import Asked, ScriptedOip

SPARE = 4
"""Descriptors that the worker has left, until connections have taken them."""


@pytest.fixture
async def server() -> AsyncIterator[ScriptedOip]:
    async with numbered_oip() as server:
        yield server


@pytest.fixture
def program(server: ScriptedOip, tmp_path: Path) -> Iterator[Program]:
    conf = write_config(tmp_path, oip_pool(server.port))
    command: list[str | Path] = [sys.executable, "-m", "proxy", "run", conf, "--state-dir", tmp_path / "state"]
    with programs.running(command, tmp_path / "log") as program:
        yield program
    expected = {"cannot_accept", "no_descriptors"}
    assert [line for line in program.faults() if json.loads(line).get("event") not in expected] == []


def worker_of(program: Program) -> int:
    """The process id of its one worker: the child that has its UDP socket."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    (worker,) = (int(each) for each in children if "worker" in Path(f"/proc/{each}/cmdline").read_text())
    return worker


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_it_serves_whom_it_has_and_recovers(program: Program, server: ScriptedOip, tmp_path: Path) -> None:
    address = parse_address((await asyncio.to_thread(program.event, "listening"))["addresses"][0])
    worker = worker_of(program)
    answer = server.answer
    async with http3(address) as client:
        assert bytes((await client.ask(INFER, body_of(1))).body) == answer_to(1)  # over a connection that is kept
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        limit = open_files(worker) + SPARE
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, before[1]))
        began = time.monotonic()
        crowd = [socket.create_connection(address) for _ in range(3 * SPARE)]
        await asyncio.to_thread(program.event, "cannot_accept")

        # Who is here is served, and who comes by QUIC, for that needs no descriptor.
        assert bytes((await client.ask(INFER, body_of(2))).body) == answer_to(2)
        async with http3(address) as other:
            assert bytes((await other.ask(INFER, body_of(3))).body) == answer_to(3)
        # What needs another connection to the backend is refused, and what has one is not.
        let_go = asyncio.Event()

        async def held(asked: Asked) -> tuple[int, bytes]:
            await let_go.wait()
            return await answer(asked)

        server.answer = held
        first = client.send(INFER, body_of(4))
        await server.has(1)
        for number in range(5, 25):
            refused = await client.ask(INFER, body_of(number))
            assert (refused.status, refused.document["reason"]) == (503, "no_endpoint")
            assert "descriptors" in refused.document["detail"]
        let_go.set()
        assert bytes((await first.over()).body) == answer_to(4)
        told = await asyncio.to_thread(program.event, "no_descriptors")
        assert told["limit"] == limit and "LimitNOFILE" in told["remedy"]
        elapsed = time.monotonic() - began
        assert len(program.events("no_descriptors")) <= 1 + elapsed / 10
        assert len(program.events("cannot_accept")) <= 2 + elapsed

        # Those who took them leave, and all is as before.
        for each in crowd:
            each.close()

        async def given_back() -> bool:
            return open_files(worker) < limit

        await eventually(given_back)
        server.answer = answer
        both = [client.send(INFER, body_of(number)) for number in (30, 31)]
        assert [bytes((await each.over()).body) for each in both] == [answer_to(30), answer_to(31)]
        async with h1_client(address, tmp_path / "state") as late:
            assert (await late.ask("/v2/models/m/infer", body_of(32))).body == answer_to(32)
    assert worker_of(program) == worker  # the same one, all along
