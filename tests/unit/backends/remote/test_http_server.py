# SPDX-License-Identifier: Apache-2.0
"""What all backends behind HTTP/1.1 share: the key, the head, and which answers are none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import pytest

from backends.errors import BackendError
from backends.remote.connection import Answer
from backends.remote.fields import said_by
from backends.remote.http_server import MOST_TOLD, HttpServer, accepted, begins_as_json, head, read_key, well
from backends.remote.origin import parse_origin
from backends.settings import SecretSettings
from inferlane.errors import Reason, Refused
from tests.fakes.asking import SOON, request_of


def answer(status: int = 200, body: bytes = b"{}", *fields: tuple[bytes, bytes]) -> Answer:
    return Answer(status, said_by(fields), body, 0.0)


def test_a_key_from_the_environment(monkeypatch):
    monkeypatch.setenv("THE_KEY", " s3cret\n")
    assert read_key(SecretSettings(env="THE_KEY")) == "s3cret"
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(BackendError, match=r"key\.env: THE_KEY is not set"):
        read_key(SecretSettings(env="THE_KEY"))


def test_a_key_from_a_file(tmp_path: Path):
    file = tmp_path / "key"
    with pytest.raises(BackendError, match=r"key\.file: .*No such file"):
        read_key(SecretSettings(file=file))
    file.write_bytes(b"s3cret\nits comment\n")
    assert read_key(SecretSettings(file=file)) == "s3cret"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BackendError, match="not text"):
        read_key(SecretSettings(file=file))


@pytest.mark.parametrize("text", ["", "\nsecond line", "two words", "line\x00", "schlüssel", "x" * 8193])
def test_a_key_that_no_field_can_carry(tmp_path: Path, text: str):
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BackendError, match="one line of 1 to 8192") as error:
        read_key(SecretSettings(file=file))
    assert str(file) in str(error.value)
    assert "words" not in str(error.value)


async def test_the_key_goes_with_every_request(server, tmp_path: Path):
    file = tmp_path / "key"
    file.write_text("s3cret")
    asked = HttpServer(
        parse_origin(f"http://127.0.0.1:{server.port}/base"), slots=1, ca=None, key=SecretSettings(file=file)
    )
    await asked.start()
    assert b"\r\nauthorization: Bearer s3cret\r\n" in asked.prefix("/base/x", "batch")
    task = asyncio.ensure_future(asked.get("/health", deadline=monotonic() + 60))
    peer = await server.accept()
    told = await peer.head()
    assert told.startswith(b"GET /base/health HTTP/1.1\r\n")
    assert b"\r\nauthorization: Bearer s3cret\r\n" in told
    peer.say(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (await task).status == 204
    assert "s3cret" not in repr(asked)
    await asked.close()


@pytest.mark.parametrize("size", [MOST_TOLD, MOST_TOLD + 1])
async def test_an_answer_comes_whole_and_is_bounded(server, size):
    asked = HttpServer(parse_origin(f"http://127.0.0.1:{server.port}"), slots=1, ca=None, key=None)
    task = asyncio.ensure_future(asked.get("/", deadline=monotonic() + 60))
    peer = await server.accept()
    await peer.head()
    peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
    if size <= MOST_TOLD:
        assert (await task).body == bytes(size)
    else:
        with pytest.raises(Refused, match="longer than"):
            await task
    await asked.close()


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
async def test_an_answer_that_never_ends_misses_its_deadline(server, kind):
    asked = HttpServer(parse_origin(f"http://127.0.0.1:{server.port}"), slots=1, ca=None, key=None)
    task = asyncio.ensure_future(asked.get("/", deadline=monotonic() + 2 * SOON))
    peer = await server.accept()
    await peer.head()
    peer.say(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\n\r\n: hello\n\n")
    async with asyncio.timeout(10):
        with pytest.raises(Refused) as refused:
            await task
    assert refused.value.reason is Reason.DEADLINE
    await asked.close()


def test_a_head_says_how_long_its_body_is_and_drops_what_the_backend_must_not_see():
    request = request_of(fields=((b"x-a", b"1"), (b"accept-encoding", b"gzip"), (b"content-type", b"text/x")))
    told = head(b"P ", request, length=5, json_length=None, dropped=(b"accept-encoding",))
    assert told.startswith(b"P 59")
    assert told.partition(b"\r\n")[2] == (
        b"x-request-id: r-1\r\ncontent-length: 5\r\nx-a: 1\r\ncontent-type: text/x\r\n\r\n"
    )
    assert b"\r\ntransfer-encoding: chunked\r\n" in head(b"", request, length=None, json_length=None)


@pytest.mark.parametrize(
    ("said", "fine"),
    [
        (answer(), True),
        (answer(body=b' \r\n\t{"a": 1}'), True),
        (answer(201, b"{}\x00\x01"), True),
        (answer(500, b"Oops"), True),
        (answer(200, b"\x1f\x8b", (b"content-encoding", b"gzip")), True),
        (answer(200, b"[]"), False),
        (answer(200, b"OK"), False),
        (answer(200, b""), False),
        (answer(204, b""), False),
        (answer(200, b" " * 10_000 + b"{}"), False),
    ],
)
def test_a_good_answer_is_a_json_object(said: Answer, fine: bool):
    if fine:
        begins_as_json(said)
        return
    with pytest.raises(Refused) as refused:
        begins_as_json(said)
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 502)


def test_a_refusal_of_the_gateways_key_is_not_the_clients():
    accepted(answer(403))
    with pytest.raises(Refused) as refused:
        accepted(answer(401))
    assert refused.value.reason is Reason.BACKEND_FAILED


@pytest.mark.parametrize("status", [300, 404, 500, 503])
def test_only_2xx_is_well(status: int):
    well(answer(200))
    well(answer(204))
    with pytest.raises(Refused, match=str(status)):
        well(answer(status))
