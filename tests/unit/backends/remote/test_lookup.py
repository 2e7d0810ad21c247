# SPDX-License-Identifier: Apache-2.0
"""A name server that answers, answers nothing, lies, or stops answering at all."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from backends.remote import lookup
from backends.remote.lookup import look_up

PATIENCE_S = 10.0
FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))]


class NameServer:
    """Stands in for getaddrinfo; `hold` until the test lets go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: object = FOUND
        self.going = threading.Event()
        self.going.set()

    def __call__(self, host: str, port: int, **_: object) -> object:
        self.asked.append(host)
        assert self.going.wait(PATIENCE_S)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def server(monkeypatch):
    server = NameServer()
    monkeypatch.setattr(lookup.socket, "getaddrinfo", server)
    yield server
    server.going.set()


async def test_what_it_says_is_what_is_found(server):
    assert await look_up("a.example", 80, socket.SOCK_STREAM) == FOUND
    assert not lookup._pending


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), OSError(5, "Input/output error")])
async def test_its_errors_are_raised(server, error):
    server.answer = error
    with pytest.raises(type(error), match=error.strerror):
        await look_up("a.example", 80, socket.SOCK_STREAM)


async def test_a_name_that_cannot_even_be_asked_about_is_an_error_like_others(server):
    server.answer = UnicodeError("label too long")
    with pytest.raises(OSError, match="label too long"):
        await look_up("a" * 70, 80, socket.SOCK_STREAM)


async def test_who_asks_while_it_hangs_shares_one_thread_and_who_leaves_takes_nothing_from_others(server):
    server.going.clear()
    asking = [asyncio.ensure_future(look_up("a.example", 80, socket.SOCK_STREAM)) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    server.going.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [FOUND] * 4
    assert server.asked == ["a.example"]


async def test_an_error_that_nobody_waits_for_any_more_is_no_noise(server):
    server.going.clear()
    server.answer = OSError(5, "Input/output error")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await look_up("a.example", 80, socket.SOCK_STREAM)
    server.going.set()
    async with asyncio.timeout(PATIENCE_S):
        while lookup._pending:
            await asyncio.sleep(0.001)


def test_an_answer_that_comes_after_its_loop_is_closed_is_dropped(server):
    server.going.clear()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await look_up("a.example", 80, socket.SOCK_STREAM)

    asyncio.run(give_up())  # ends although the look-up goes on
    left = [thread for thread in threading.enumerate() if thread.name == "look-up a.example"]
    assert left
    server.going.set()
    for thread in left:
        thread.join(PATIENCE_S)
    assert not lookup._pending
    assert asyncio.run(look_up("a.example", 80, socket.SOCK_STREAM)) == FOUND
