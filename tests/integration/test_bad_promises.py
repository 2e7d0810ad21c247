# SPDX-License-Identifier: Apache-2.0
"""Deadlines of 0, below 0 and of 10^12, and classes that nobody defined: a clear 400, or what the class allows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import inferlane
from inferlane.errors import Reason
from inferlane.wire import Type
from proxy.telemetry.finished import Telemetry
from tests.fakes.crowd import Member, crowd
from tests.fakes.h1_client import h1_client
from tests.fakes.live_gateway import LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.oip_server import OipServer
from tests.fakes.raw_quic import http3, section

PATH = "/v2/models/m/infer"
X = {"x": np.zeros(1, np.int32)}
SCHEMES = ("https", "quic", "quic+datagram", "udp")
CLASSES = """
  - {name: interactive, dscp: AF21, deadline: 60s, default: true}
  - {name: brief, dscp: AF11, deadline: 300ms}
"""
# What no request can mean.
NO_DEADLINES = ("0", "0s", "0ms", "0.0us", "-1s", "-0s", "1000000000000", "1000000000000s", "1e12s", "inf", "nan", "")
MOST_US = 2**32 - 1


@pytest.fixture
async def server() -> AsyncIterator[OipServer]:
    made = OipServer(7)
    await made.start()
    yield made
    made.let_go.set()
    await made.die()


@pytest.fixture
async def gateway(server: OipServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    conf = write_config(
        tmp_path, oip_pool(server.port), classes=CLASSES, listener="max_class: interactive, tls: development"
    )
    async with live_gateway(conf) as started:
        yield started


@pytest.fixture
async def member(gateway: LiveGateway) -> AsyncIterator[Member]:
    """One client by datagram whose header a test writes."""
    async with crowd(gateway.address, 1) as members:
        yield members[0]


async def test_a_deadline_that_is_none_is_refused_by_name(gateway, server, tmp_path):
    async with http3(gateway.address) as h3, h1_client(gateway.address, tmp_path) as h1:
        for said in NO_DEADLINES:
            by_h3 = await h3.ask(section(PATH.encode(), (b"inferlane-timeout", said.encode())), b"{}")
            by_h1 = await h1.ask(PATH, inferlane_timeout=said)
            for status, document in ((by_h3.status, by_h3.document), (by_h1.status, by_h1.document)):
                assert (status, document["reason"]) == (400, "bad_request"), said
                assert document["detail"].startswith("inferlane-timeout: "), said
                assert "ms" in document["detail"], said  # how to write it
        # The connection is none the worse for it.
        assert (await h1.ask(PATH)).status == 200
    assert server.asked == 1
    await gateway.nothing_in_flight()


async def test_a_longer_deadline_than_the_class_s_is_the_class_s(gateway, server, tmp_path):
    async with http3(gateway.address) as h3, h1_client(gateway.address, tmp_path) as h1:
        for said in ("999999999s", "999999999m", "61s"):
            server.let_go.set()
            assert (await h1.ask(PATH, inferlane_timeout=said)).status == 200
            server.let_go.clear()
            fields = ((b"inferlane-timeout", said.encode()), (b"inferlane-class", b"brief"))
            late = await h3.ask(section(PATH.encode(), *fields), b"{}")
            assert (late.status, late.document["reason"]) == (504, "deadline")
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_client_library_takes_no_deadline_that_is_none(gateway, server, scheme):
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        for said in (0, -1, -1e12, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                await client.infer("m", X, timeout=said)
        assert server.asked == 0
        reply = await client.infer("m", X, timeout=1e12)
        assert reply.outputs["y"].tolist() == [7]
        server.let_go.clear()
        with pytest.raises(inferlane.Refused) as late:
            await client.infer("m", X, cls="brief", timeout=1e12)
        assert late.value.reason is Reason.DEADLINE
        server.let_go.set()
    await gateway.nothing_in_flight()


@pytest.mark.parametrize("remaining_us", [0, MOST_US])
async def test_a_datagram_s_time_of_none_or_the_most_is_the_class_s(gateway, server, member, remaining_us):
    answer = await member.ask(remaining_us=remaining_us)
    assert (answer.header.type, answer.header.status) == (Type.REPLY, 200)
    server.let_go.clear()
    late = await member.ask(cls="brief", remaining_us=remaining_us)
    assert (late.header.status, Reason.from_code(late.header.reason)) == (504, Reason.DEADLINE)
    await gateway.nothing_in_flight()


async def test_a_datagram_s_last_microsecond_is_over_before_anybody_is_asked(gateway, server, member):
    late = await member.ask(remaining_us=1)
    assert (late.header.status, Reason.from_code(late.header.reason)) == (504, Reason.DEADLINE)
    assert server.asked == 0
    await gateway.nothing_in_flight()


async def test_a_class_that_nobody_defined_is_the_default_one(gateway, member, tmp_path):
    async with http3(gateway.address) as h3, h1_client(gateway.address, tmp_path) as h1:
        for name in ("nobody", "Interactive", "interactive,brief", "0", "x" * 255):
            by_h3 = await h3.ask(section(PATH.encode(), (b"inferlane-class", name.encode())), b"{}")
            by_h1 = await h1.ask(PATH, inferlane_class=name)
            by_datagram = await member.ask(cls=name)
            assert (by_h3.status, by_h3.head[b"inferlane-class"]) == (200, b"interactive"), name
            assert (by_h1.status, by_h1.fields["inferlane-class"]) == (200, "interactive"), name
            assert (by_datagram.header.status, by_datagram.header.class_name) == (200, "interactive"), name
    await gateway.nothing_in_flight()


async def test_the_log_says_that_there_is_no_such_class(gateway, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(Telemetry, "request_finished", lambda _, answered, **more: told.append(answered.why))
    async with h1_client(gateway.address, tmp_path) as h1:
        assert (await h1.ask(PATH, inferlane_class="nobody")).status == 200
    assert told == ["default class; no class is named 'nobody'"]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_client_library_is_told_which_class_served_it(gateway, scheme):
    async with inferlane.Client(gateway.url(scheme), insecure=True) as client:
        assert (await client.infer("m", X, cls="nobody")).served_class == "interactive"
        for name in ("", "two words", "ünknown", "x" * 256):
            with pytest.raises(ValueError, match="cls"):
                await client.infer("m", X, cls=name)
