# SPDX-License-Identifier: Apache-2.0
"""Probes find what is down and what is back, hang nowhere, and end when they are told to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from backends.lookout.probing import JITTER, Probing, ask, pause_s
from backends.messages import Api
from backends.pool_settings import ProbeSettings
from backends.remote.oip import OipBackend
from backends.remote.openai import OpenAiBackend
from tests.fakes.fleet import PATIENCE_S, until, watched_endpoint, watched_pool
from tests.fakes.raw_server import RawServer

SETTINGS = ProbeSettings(failures=2)
HASTY = ProbeSettings.model_validate({"timeout": "100ms"})


class Pauses:
    """In place of sleeping: an instant, written down."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await asyncio.sleep(0.001)


def probing_of(pool, settings: ProbeSettings | None = SETTINGS, *, changed=lambda _: None) -> Probing:
    return Probing([(pool, settings)], changed=changed, rng=random.Random(1), sleep=Pauses())


async def test_an_endpoint_that_fails_two_probes_is_out_and_the_next_good_one_brings_it_back():
    pool, (good, bad) = watched_pool("good", "bad")
    told: list[str] = []
    probing = probing_of(pool, changed=told.append)
    bad.well = False
    probing.start()
    with capture_logs() as logs:
        await until(lambda: pool.endpoints[1].state(monotonic()) == "ejected")
        assert bad.probes >= 2 and pool.endpoints[0].state(monotonic()) == "healthy"
        bad.well = True
        await until(lambda: pool.endpoints[1].state(monotonic()) == "healthy")
    await probing.close()
    assert [(each["event"], each["endpoint"]) for each in logs] == [
        ("probe_failed", "bad"),
        ("probe_succeeds_again", "bad"),
    ]
    assert logs[0]["detail"] == "the backend is not well"
    assert told == ["digits", "digits"]
    assert probing.counts["digits", False] >= 2 and probing.counts["digits", True] >= good.probes


async def test_one_that_hangs_has_failed_in_its_time_and_delays_nobody():
    pool, (good, hung) = watched_pool("good", "hung")
    hung.hangs = True
    probing = probing_of(pool, HASTY)
    probing.start()
    await until(lambda: pool.endpoints[1].state(monotonic()) == "ejected")
    await probing.close()
    assert good.probes > hung.probes
    assert hung.most_at_once == 1 and hung.at_once == 0


async def test_a_probe_that_breaks_is_told_and_ends_nothing():
    pool, (broken,) = watched_pool("broken")
    broken.broken = ZeroDivisionError("a bug")
    probing = probing_of(pool)
    with capture_logs() as logs:
        probing.start()
        await until(lambda: broken.probes > 3)
        assert {each["event"] for each in logs} == {"probe_broke"}
        broken.broken = None
        await until(lambda: probing.counts["digits", True])
    await probing.close()


async def test_endpoints_that_join_are_asked_and_those_that_left_are_not():
    pool, (old,) = watched_pool("old")
    probing = probing_of(pool)
    probing.start()
    await until(lambda: old.probes)
    endpoint, young = watched_endpoint("young")
    pool.replace([endpoint])
    await until(lambda: young.probes)
    await until(lambda: old.closed)
    until_now = old.probes
    asked = young.probes
    await until(lambda: young.probes > asked + 3)
    await probing.close()
    assert old.probes <= until_now + 1


async def test_closing_ends_what_hangs_and_nobody_probes_without_settings():
    pool, (hung,) = watched_pool("hung")
    hung.hangs = True
    probing = probing_of(pool)
    probing.start()
    await until(lambda: hung.at_once)
    await probing.close()
    assert hung.at_once == 0 and "1" not in repr(probing)

    without = probing_of(pool, None)
    without.start()
    await asyncio.sleep(0.01)
    await without.close()
    assert hung.probes == 1


@given(st.floats(0.1, 86_400), st.integers())
def test_pauses_are_spread_around_what_was_asked_for(every_s, seed):
    pause = pause_s(every_s, random.Random(seed))
    assert (1 - JITTER) * every_s <= pause <= (1 + JITTER) * every_s * (1 + 1e-9)


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture(params=[OipBackend, OpenAiBackend])
async def remote(server, request) -> AsyncIterator[OipBackend | OpenAiBackend]:
    remote = request.param(f"http://127.0.0.1:{server.port}/base", slots=1)
    yield remote
    await remote.close()


@pytest.mark.parametrize(
    ("status", "failure"), [(200, None), (302, None), (404, "/up answered 404"), (503, "/up answered 503")]
)
async def test_http_is_a_get_of_the_path(server, remote, status, failure):
    settings = ProbeSettings(kind="http", path="/up")
    asking = asyncio.ensure_future(ask(remote, settings, deadline=monotonic() + 60))
    peer = await server.accept()
    assert (await peer.head()).startswith(b"GET /base/up HTTP/1.1\r\n")
    peer.say(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
    assert await asking == failure


async def test_tcp_is_a_connection_and_a_closed_port_fails(server, remote):
    settings = ProbeSettings(kind="tcp")
    assert await ask(remote, settings, deadline=monotonic() + 60) is None
    await server.close()
    said = await ask(remote, settings, deadline=monotonic() + 60)
    assert said is not None and "refused" in said


@pytest.mark.parametrize("kind", ["http", "tcp", "ping", "ready", None])
async def test_what_has_no_http_server_is_asked_its_own_way(kind):
    _, backend = watched_endpoint("e", api=Api.OIP)
    assert await ask(backend, ProbeSettings(kind=kind), deadline=monotonic() + 60) is None
    assert backend.probes == 1


async def test_time_that_is_up_is_told_as_such(server, remote):
    settings = ProbeSettings.model_validate({"kind": "http", "timeout": "100ms"})
    assert await ask(remote, settings, deadline=monotonic() + 0.05) == "no answer within 0.1 s"


async def test_closing_ends_it_while_an_endpoint_is_being_let_go():
    """The cancellation comes while the watch of one that left is being ended, and must not get lost there."""
    pool, (old,) = watched_pool("old")
    old.hangs = True
    going = asyncio.Event()
    probing = probing_of(pool)
    probe = old.probe

    async def leaves_slowly(*, deadline: float) -> None:
        try:
            await probe(deadline=deadline)
        finally:
            going.set()
            await asyncio.sleep(0.01)

    old.probe = leaves_slowly  # type: ignore[method-assign]
    probing.start()
    await until(lambda: old.at_once)
    pool.replace([])
    await going.wait()
    async with asyncio.timeout(PATIENCE_S):
        await probing.close()
