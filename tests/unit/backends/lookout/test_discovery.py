# SPDX-License-Identifier: Apache-2.0
"""Endpoints that come and go by a name server and a file, each of which may stop making sense at any time."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from backends.build import build
from backends.endpoint import Endpoint
from backends.errors import BackendError
from backends.lookout import discovery
from backends.lookout.discovery import Discovery, PoolDiscovery
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.settings import EndpointSettings, OipSettings
from tests.fakes.fleet import WatchedBackend, until, watched_endpoint

NAMED = {"oip": "http://far.example:8000", "resolve": "10s"}
ONE, TWO, THREE = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class NameServer:
    """Says what the test wants; None: it does not answer."""

    def __init__(self) -> None:
        self.addresses: Sequence[str] | OSError | None = ()
        self.asked = 0

    async def __call__(self, host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, tuple[str, int]]]:
        self.asked += 1
        assert host == "far.example"
        if self.addresses is None:
            await asyncio.Event().wait()
        if isinstance(self.addresses, OSError):
            raise self.addresses
        assert self.addresses is not None
        return [(socket.AF_INET, (each, port)) for each in self.addresses]


class Reader:
    """Reads a file of one URL a line."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, file: Path, pool: PoolSettings) -> tuple[EndpointSettings, ...]:
        self.read += 1
        lines = file.read_text().splitlines()
        if "broken" in lines:
            raise BackendError(f"{file}:1:1: not a URL")
        return tuple(OipSettings(oip=each) for each in lines)


@pytest.fixture
def dns(monkeypatch):
    server = NameServer()
    monkeypatch.setattr(discovery, "resolve", server)
    return server


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "endpoints.yaml"


def pool_with(*endpoints: dict[str, object], file: Path | None = None) -> tuple[Pool, PoolSettings]:
    settings = PoolSettings.model_validate(
        {
            "name": "far",
            "model": "*",
            **({"endpoints": tuple(endpoints)} if endpoints else {}),
            **({"endpoints_from": {"file": file, "every": "2s"}} if file else {}),
        }
    )
    (pool,) = build([settings]).pools
    return pool, settings


def watch(*endpoints: dict[str, object], file: Path | None = None) -> PoolDiscovery:
    return PoolDiscovery(*pool_with(*endpoints, file=file), read=Reader(), rng=random.Random(1))


def names(pool: Pool) -> list[str]:
    return [each.name for each in pool.endpoints]


def at(*addresses: str) -> list[str]:
    return [f"oip:far.example:8000@{each}" for each in addresses]


async def test_each_address_of_a_name_becomes_an_endpoint_and_what_stays_keeps_what_it_learned(dns):
    watched = watch({"oip": "http://10.9.9.9:1"}, NAMED)
    fixed = watched.pool.endpoints[0]
    dns.addresses = (ONE, TWO)
    due = await watched.look(100.0)
    assert names(watched.pool) == ["oip:10.9.9.9:1", *at(ONE, TWO)]
    assert watched.pool.endpoints[0] is fixed
    two = watched.pool.endpoints[2]
    assert 109.0 <= due <= 111.0

    assert await watched.look(105.0) == due and dns.asked == 1
    dns.addresses = (TWO, THREE)
    await watched.look(due)
    assert names(watched.pool) == ["oip:10.9.9.9:1", *at(TWO, THREE)]
    assert watched.pool.endpoints[1] is two
    await watched.pool.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((), "far.example resolves to nothing"),
        (socket.gaierror(-2, "Name or service not known"), "cannot be resolved: Name or service not known"),
        (None, "no answer about far.example within"),
    ],
)
async def test_a_name_server_that_fails_changes_nothing_and_is_told_once(dns, monkeypatch, answer, said):
    monkeypatch.setattr(discovery, "ANSWER_S", 0.01)
    watched = watch(NAMED)
    dns.addresses = (ONE,)
    due = await watched.look(0.0)
    dns.addresses = answer
    with capture_logs() as logs:
        for _ in range(3):
            due = await watched.look(due)
        assert names(watched.pool) == at(ONE)
        dns.addresses = (ONE,)
        await watched.look(due)
    assert [each["event"] for each in logs] == ["discovery_failed", "discovery_works_again"]
    assert said in logs[0]["detail"] and "keeps the endpoints it has" in logs[0]["detail"]
    assert watched.failures == {"name": 3}
    await watched.pool.close()


async def test_a_name_that_resolves_to_nothing_at_the_start_leaves_a_pool_that_is_not_ready_until_it_does(dns):
    watched = watch(NAMED)
    assert not watched.pool.ready and not watched.pool.endpoints
    due = await watched.look(0.0)
    assert not watched.pool.ready
    dns.addresses = (ONE,)
    await watched.look(due)
    assert watched.pool.ready
    await watched.pool.close()


async def test_a_file_s_endpoints_join_those_of_the_config(file):
    file.write_text("http://10.0.0.2:1\n")
    watched = watch({"oip": "http://10.0.0.1:1"}, file=file)
    due = await watched.look(0.0)
    assert names(watched.pool) == ["oip:10.0.0.1:1", "oip:10.0.0.2:1"]
    kept = watched.pool.endpoints
    assert 1.8 <= due <= 2.2

    file.write_text("http://10.0.0.3:1\nhttp://10.0.0.2:1\n")
    await watched.look(due)
    assert names(watched.pool) == ["oip:10.0.0.1:1", "oip:10.0.0.3:1", "oip:10.0.0.2:1"]
    assert watched.pool.endpoints[2] is kept[1]
    await watched.pool.close()


async def test_a_file_that_did_not_change_is_not_read_again(file):
    file.write_text("http://10.0.0.2:1\n")
    reader = Reader()
    watched = PoolDiscovery(*pool_with(file=file), read=reader, rng=random.Random(1))
    due = 0.0
    for _ in range(4):
        due = await watched.look(due)
    assert reader.read == 1
    replaced = file.with_suffix(".new")
    replaced.write_text("http://10.0.0.3:1\n")
    os.rename(replaced, file)
    await watched.look(due)
    assert names(watched.pool) == ["oip:10.0.0.3:1"]
    await watched.pool.close()


async def test_a_file_that_breaks_or_vanishes_keeps_what_it_said(file):
    file.write_text("http://10.0.0.2:1\n")
    watched = watch(file=file)
    due = await watched.look(0.0)
    with capture_logs() as logs:
        file.write_text("broken\n")
        due = await watched.look(due)
        due = await watched.look(due)
        file.unlink()
        due = await watched.look(due)
        assert names(watched.pool) == ["oip:10.0.0.2:1"]
        file.write_text("http://10.0.0.3:1\n")
        due = await watched.look(due)
    assert names(watched.pool) == ["oip:10.0.0.3:1"]
    assert [each["event"] for each in logs] == [
        "discovery_failed",
        "discovery_failed",
        "discovery_works_again",
        "endpoints_changed",
    ]
    assert f"{file}:1:1: not a URL" in logs[0]["detail"] and "No such file" in logs[1]["detail"]
    assert (logs[3]["joined"], logs[3]["left"]) == (["oip:10.0.0.3:1"], ["oip:10.0.0.2:1"])
    await watched.pool.close()


async def test_a_file_that_is_written_while_it_is_read_is_read_again(file):
    file.write_text("http://10.0.0.2:1\n")
    reader = Reader()

    def read_in_the_middle(path: Path, pool: PoolSettings) -> tuple[EndpointSettings, ...]:
        found = reader(path, pool)
        if reader.read == 1:
            file.write_text("http://10.0.0.2:1\nhttp://10.0.0.3:1\n")
        return found

    watched = PoolDiscovery(*pool_with(file=file), read=read_in_the_middle, rng=random.Random(1))
    due = await watched.look(0.0)
    assert names(watched.pool) == []
    await watched.look(due)
    assert names(watched.pool) == ["oip:10.0.0.2:1", "oip:10.0.0.3:1"]
    await watched.pool.close()


async def test_one_whose_settings_change_keeps_its_name(file):
    """For metrics and for admins it is the same endpoint."""
    file.write_text("http://10.0.0.2:1\n")
    watched = watch(file=file)
    watched._read = lambda file, pool: (OipSettings(oip="http://10.0.0.2:1", slots=len(file.read_text())),)
    due = await watched.look(0.0)
    (before,) = watched.pool.endpoints
    file.write_text("http://10.0.0.2:1\n# another number of slots\n")
    await watched.look(due)
    (after,) = watched.pool.endpoints
    assert after is not before
    assert (after.name, after.slots > before.slots) == (before.name, True)
    await watched.pool.close()


async def test_an_empty_list_is_nobody(file):
    file.write_text("http://10.0.0.2:1\n")
    watched = watch(file=file)
    due = await watched.look(0.0)
    file.write_text("")
    await watched.look(due)
    assert names(watched.pool) == []
    await watched.pool.close()


async def test_an_endpoint_that_cannot_start_is_left_out_and_tried_again(dns, tmp_path):
    authority = tmp_path / "ca.pem"
    watched = watch({"oip": "http://10.0.0.9:1"}, NAMED | {"oip": "https://far.example:8000", "tls": {"ca": authority}})
    dns.addresses = (ONE,)
    with capture_logs() as logs:
        due = await watched.look(0.0)
        assert due <= discovery.RETRY_S
        assert names(watched.pool) == ["oip:10.0.0.9:1"]
        await watched.look(due)
    assert [each["event"] for each in logs] == ["discovery_failed"]
    assert "ca.pem" in logs[0]["detail"]
    assert watched.failures == {"start": 2}
    await watched.pool.close()


async def test_who_was_started_for_a_pool_that_closes_meanwhile_is_closed_too(dns, monkeypatch):
    made: list[WatchedBackend] = []

    def make(settings: EndpointSettings, taken: set[str], *, address: str | None) -> Endpoint:
        endpoint, backend = watched_endpoint(str(address))
        made.append(backend)
        backend.starts_slowly = address == TWO
        return endpoint

    monkeypatch.setattr(discovery, "endpoint_of", make)
    watched = watch(NAMED)
    dns.addresses = (ONE, TWO)
    looking = asyncio.ensure_future(watched.look(0.0))
    await until(lambda: len(made) == 2 and made[1].started)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert made[0].closed == 1 and not watched.pool.endpoints


async def test_who_leaves_finishes_what_it_has_and_is_closed_then(dns):
    watched = watch(NAMED)
    dns.addresses = (ONE,)
    due = await watched.look(0.0)
    (leaving,) = watched.pool.endpoints
    leaving.take(1.0)
    dns.addresses = (TWO,)
    await watched.look(due)
    assert leaving.draining and leaving.in_flight == 1
    await watched.pool.close()


async def test_the_background_goes_on_whatever_breaks_and_tells_what_changed(dns, monkeypatch):
    monkeypatch.setattr(discovery, "RETRY_S", 0.01)
    dns.addresses = (ONE,)
    pool, settings = pool_with(NAMED | {"resolve": "100ms"})
    told: list[str] = []
    running = Discovery([(pool, settings)], read=Reader(), changed=told.append)
    await running.start()
    assert names(pool) == at(ONE) and told == ["far"]
    with capture_logs() as logs:
        monkeypatch.setattr(pool, "replace", None)
        dns.addresses = (TWO,)
        await until(lambda: any(each["event"] == "discovery_broke" for each in logs))
        monkeypatch.undo()
        monkeypatch.setattr(discovery, "resolve", dns)
        await until(lambda: names(pool) == at(TWO))
    await running.close()
    await pool.close()


async def test_a_start_does_not_wait_for_a_name_server_that_is_silent(dns, monkeypatch):
    monkeypatch.setattr(discovery, "START_S", 0.01)
    dns.addresses = None
    pool, settings = pool_with(NAMED)
    running = Discovery([(pool, settings)], read=Reader(), changed=lambda _: None)
    await running.start()
    assert not pool.ready
    await running.close()


async def test_pools_with_nothing_to_discover_are_left_alone():
    pool, settings = pool_with({"oip": "http://10.0.0.1:1"})
    running = Discovery([(pool, settings)], read=Reader(), changed=lambda _: None)
    await running.start()
    assert repr(running) == "<Discovery []>" and running.failures == {}
    await running.close()
