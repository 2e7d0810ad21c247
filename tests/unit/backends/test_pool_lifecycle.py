# SPDX-License-Identifier: Apache-2.0
"""A pool's endpoints are started together, change while it runs, and are closed together."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from backends.choosing.picker import round_robin
from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.outcome import Ending, Outcome
from backends.pool import Pool
from qos.limit import FixedLimit
from tests.fakes.endpoints import IdleBackend

ANSWERED = Outcome(ending=Ending.ANSWERED, latency_s=1.0, held_s=1.0)


class ScriptedBackend(IdleBackend):
    """Starts when it is told to, and fails as it is told to."""

    def __init__(self, *, start: Exception | None = None, close: Exception | None = None) -> None:
        super().__init__()
        self.starting = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.cancelled = False
        self.closed = 0
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
        await self.may_close.wait()
        self.closed += 1


def pool(*backends: IdleBackend) -> Pool:
    return Pool("magika", [Endpoint(f"e{n}", each, FixedLimit(2)) for n, each in enumerate(backends)], round_robin)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


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
    assert other.closed == 1
    await pool(other).close()


async def test_one_that_is_removed_is_closed_when_it_has_finished():
    backend = ScriptedBackend()
    magika = pool(backend)
    (leaving,) = magika.endpoints
    leaving.take(0.0)
    leaving.take(0.0)
    assert magika.replace([]) == [leaving]
    magika.finished(leaving, ANSWERED, "batch", 1.0)
    await settled()
    assert backend.closed == 0
    magika.finished(leaving, ANSWERED, "batch", 1.0)
    await settled()
    assert backend.closed == 1
    await magika.close()
    assert backend.closed == 1


async def test_an_idle_one_that_is_removed_is_closed_at_once():
    backend = ScriptedBackend()
    magika = pool(backend, ScriptedBackend())
    magika.replace(magika.endpoints[1:])
    await settled()
    assert backend.closed == 1
    assert magika.endpoints[0].name == "e1"


async def test_a_removed_one_that_is_still_busy_is_closed_with_the_pool():
    backend = ScriptedBackend()
    magika = pool(backend)
    magika.endpoints[0].take(0.0)
    magika.replace([])
    await magika.close()
    assert backend.closed == 1


async def test_the_pool_is_closed_only_when_its_removed_ones_are():
    backend = ScriptedBackend()
    backend.may_close.clear()
    magika = pool(backend)
    magika.replace([])
    await settled()
    closing = asyncio.ensure_future(magika.close())
    await settled()
    assert not closing.done()
    backend.may_close.set()
    await closing
    assert backend.closed == 1


async def test_a_removed_one_that_cannot_be_closed_is_logged():
    magika = pool(ScriptedBackend(close=OSError("busy")))
    with capture_logs() as logs:
        magika.replace([])
        await settled()
    assert logs == [
        {
            "event": "endpoint_close_failed",
            "log_level": "warning",
            "pool": "magika",
            "endpoint": "e0",
            "detail": "OSError('busy')",
        }
    ]


def test_without_a_loop_removed_ones_wait_for_close():
    backend = ScriptedBackend()
    magika = pool(backend)
    magika.replace([])
    asyncio.run(magika.close())
    assert backend.closed == 1


async def test_one_that_comes_back_before_it_had_gone_stays():
    backend = ScriptedBackend()
    magika = pool(backend)
    (only,) = magika.endpoints
    only.take(0.0)
    magika.replace([])
    magika.replace([only])
    magika.finished(only, ANSWERED, "batch", 1.0)
    await settled()
    assert backend.closed == 0
    assert magika.pick(2.0) is only
