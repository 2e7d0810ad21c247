# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.picker import round_robin
from backends.pool import Pool
from tests.fakes.endpoints import IdleBackend, pool_of


class ScriptedBackend(IdleBackend):
    """Starts when it is told to, and fails as it is told to."""

    def __init__(self, *, start: Exception | None = None, close: Exception | None = None) -> None:
        super().__init__()
        self.starting = asyncio.Event()
        self.may_start = asyncio.Event()
        self.cancelled = False
        self.closed = False
        self._start_error = start
        self._close_error = close

    async def start(self) -> None:
        self.starting.set()
        if self._start_error is not None:
            raise self._start_error
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def close(self) -> None:
        if self._close_error is not None:
            raise self._close_error
        self.closed = True


def pool(*backends: IdleBackend) -> Pool:
    return Pool("magika", [Endpoint(f"e{n}", backend, 1) for n, backend in enumerate(backends)], round_robin)


def test_it_picks_in_turn_and_only_what_is_free():
    magika = Pool("magika", [Endpoint(name, IdleBackend(), 2) for name in "abc"], round_robin)
    picked = []
    while (endpoint := magika.pick()) is not None:
        endpoint.take()
        picked.append(endpoint.name)
    assert picked == ["a", "b", "c", "a", "b", "c"]
    magika.endpoints[1].release()
    assert magika.pick() is magika.endpoints[1]
    assert repr(magika) == "<Pool magika 1 of 3 endpoints free, 5 in flight>"


def test_it_is_ready_while_any_endpoint_is():
    magika = pool_of(1, 1)
    magika.endpoints[0].take()
    magika.endpoints[1].backend.ready = False
    assert magika.pick() is None
    assert magika.ready
    magika.endpoints[0].backend.ready = False
    assert not magika.ready


async def test_endpoints_start_side_by_side():
    first, second = ScriptedBackend(), ScriptedBackend()
    starting = asyncio.ensure_future(pool(first, second).start())
    await asyncio.gather(first.starting.wait(), second.starting.wait())
    assert not starting.done()
    first.may_start.set()
    second.may_start.set()
    await starting


async def test_one_that_cannot_start_is_named_and_stops_the_others():
    slow, broken = ScriptedBackend(), ScriptedBackend(start=BackendError("no such file: model.onnx"))
    with pytest.raises(BackendError) as error:
        await pool(slow, broken).start()
    assert str(error.value) == "pool magika, endpoint e1: no such file: model.onnx"
    assert slow.cancelled


async def test_a_bug_in_a_start_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        await pool(ScriptedBackend(start=ZeroDivisionError())).start()


async def test_all_are_closed_though_one_fails_to():
    failing, other = ScriptedBackend(close=OSError("busy")), ScriptedBackend()
    with pytest.raises(ExceptionGroup, match="closing pool magika") as failures:
        await pool(failing, other).close()
    assert [str(each) for each in failures.value.exceptions] == ["busy"]
    assert other.closed
    await pool(other).close()
