# SPDX-License-Identifier: Apache-2.0
"""A model in another process is asked by its socket, under the name its client has for it, and refuses as one here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from backends.errors import BackendError
from backends.messages import Api, Reply, Request
from backends.remote.served import Naming, ServedModel
from inferlane.errors import Reason, Refused
from tests.fakes.asking_models import asked

_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)


class Process:
    """Answers each request as it is told; keeps the heads it got."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heads: list[bytes] = []
        self.status, self.body, self.fields = 200, b'{"model_name":"m"}', b"content-type: application/json\r\n"

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = _LENGTH.search(head)
                await reader.readexactly(int(length[1]) if length else 0)
                self.heads.append(head)
                first = b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n" % (self.status, self.fields, len(self.body))
                writer.write(first + self.body)
        except (asyncio.IncompleteReadError, OSError):
            writer.transport.abort()


@pytest.fixture
async def process(tmp_path) -> AsyncIterator[Process]:
    running = Process(tmp_path / "0.sock")
    server = await asyncio.start_unix_server(running.connected, running.path)
    yield running
    server.close()
    await asyncio.sleep(0)


@pytest.fixture
async def backend(process) -> AsyncIterator[ServedModel]:
    running = ServedModel(process.path, slots=2)
    await running.start()
    yield running
    await running.close()


async def test_the_client_s_name_and_none_of_its_fields_go_with_the_request(backend, process):
    request = replace(asked(b"{}", model="a/b ü", version="1"), fields=((b"x-mine", b"1"), (b"x-asked", b"forged")))
    await backend.infer(request)
    (head,) = process.heads
    assert head.startswith(b"POST /v2/models/model/infer HTTP/1.1\r\n")
    assert b"\r\nx-asked: a%2Fb%20%C3%BC/1\r\n" in head
    assert b"x-mine" not in head and b"forged" not in head
    assert b"\r\ninferlane-class: interactive\r\n" in head


async def test_a_reply_has_what_a_model_here_would_say_and_no_more(backend, process):
    process.fields += b"date: today\r\nserver: x\r\nserver-timing: queue;dur=5, compute;dur=7\r\n"
    reply = await backend.infer(asked(b"{}"))
    assert reply.fields == ((b"content-type", b"application/json"),)
    assert (reply.backend_queue_s, reply.compute_s) == (None, 0.007)


async def test_a_refusal_is_the_gateway_s_own(backend, process):
    process.status = 503
    problem = {"reason": "queue_full", "detail": "too many", "status": 503, "retry_after_ms": 1500}
    process.body = msgspec.json.encode(problem)
    with pytest.raises(Refused) as refused:
        await backend.infer(asked(b"{}"))
    assert (refused.value.reason, refused.value.detail) == (Reason.QUEUE_FULL, "too many")
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1.5)


async def test_an_answer_without_a_reason_is_a_failure(backend, process):
    process.status, process.body = 500, b"oops"
    with pytest.raises(Refused) as refused:
        await backend.infer(asked(b"{}"))
    assert refused.value.reason is Reason.BACKEND_FAILED


async def test_where_nobody_listens_the_request_is_refused_and_may_go_elsewhere(tmp_path):
    backend = ServedModel(tmp_path / "none.sock", slots=1)
    await backend.start()
    with pytest.raises(Refused) as refused:
        await backend.infer(asked(b"{}"))
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 503)
    assert str(tmp_path) not in refused.value.detail
    await backend.close()


class Model:
    """As the process has it."""

    api, ready = Api.OIP, True

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def start(self) -> None:
        raise BackendError("not today")

    async def close(self) -> None: ...

    async def infer(self, request: Request) -> Reply:
        self.asked.append((request.model, request.version))
        return Reply(body=b"{}")

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        return Reply(body=b"{}")

    async def probe(self, *, deadline: float) -> None: ...


async def test_in_the_process_the_model_is_asked_by_the_client_s_name():
    model = Model()
    naming = Naming(model)
    await naming.infer(replace(asked(b"{}"), fields=((b"x-asked", b"a%2Fb%20%C3%BC/2"),)))
    await naming.infer(asked(b"{}", model="plain"))
    assert model.asked == [("a/b ü", "2"), ("plain", "")]
    assert (naming.api, naming.ready) == (Api.OIP, True)
    with pytest.raises(BackendError):
        await naming.start()
