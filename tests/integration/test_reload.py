# SPDX-License-Identifier: Apache-2.0
"""SIGHUP under load: what changed is on the next packet, nothing is lost, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import inferlane
from tests.fakes import models
from tests.fakes.capture import capturing
from tests.fakes.live_gateway import CLASSES, GatewayProcess, eventually, gateway_process, write_config
from tests.fakes.raw_quic import http3, section

POOL = '[{name: identity, model: identity, endpoints: [{onnx: "FOLDER/model.onnx", slots: 4}]}]'
LIVE = section(b"/v2/health/live", method=b"GET")
AF21, AF31 = 18 << 2, 26 << 2
X = {"x": np.ones((1, 2), np.float32)}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    models.saved(models.identity("FP32", ("rows", "columns")), tmp_path)
    return write_config(tmp_path, POOL.replace("FOLDER", str(tmp_path)))


@pytest.fixture
async def gateway(conf: Path) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(conf) as started:
        await started.address()
        yield started


async def reloaded(gateway: GatewayProcess, event: str = "reloaded", *, times: int = 1) -> dict[str, object]:
    """Send the signal; the line that it led to."""
    gateway.signal(signal.SIGHUP)
    lines: list[dict[str, object]] = []

    async def told() -> bool:
        lines[:] = [line for line in map(json.loads, gateway.lines) if line["event"] == event]
        return len(lines) >= times

    await eventually(told)
    return lines[-1]


def rewrite(conf: Path, old: str, new: str) -> None:
    text = conf.read_text()
    assert old in text
    conf.write_text(text.replace(old, new))


@pytest.mark.needs_root
async def test_a_changed_mark_is_on_the_next_packet_of_a_connection_that_was_there(
    gateway: GatewayProcess, conf: Path
) -> None:
    address = await gateway.address()
    with capturing() as wire:
        async with http3(address) as client:
            assert (await client.ask(LIVE)).status == 200
            rewrite(conf, "AF21", "AF31")
            assert (await reloaded(gateway))["changed"] == ["classes"]
            wire.forget()
            for _ in range(3):
                assert (await client.ask(LIVE)).status == 200
            assert wire.ds_fields(by=address[1]) == {AF31}


@pytest.mark.needs_root
async def test_a_changed_mark_is_on_the_next_datagram(gateway: GatewayProcess, conf: Path) -> None:
    host, port = await gateway.address()
    with capturing() as wire:
        async with inferlane.Client(f"udp://{host}:{port}") as client:
            await client.infer("identity", X)
            assert AF21 in wire.ds_fields(by=port)
            rewrite(conf, "AF21", "AF31")
            await reloaded(gateway)
            wire.forget()
            await client.infer("identity", X)
            assert wire.ds_fields(by=port) == {AF31}


@pytest.mark.parametrize("scheme", ["https", "quic", "quic+datagram", "udp"])
async def test_no_request_is_lost_while_it_reloads_again_and_again(
    gateway: GatewayProcess, conf: Path, scheme: str
) -> None:
    """Classes come, go and change their places under requests of every class that stays."""
    host, port = await gateway.address()
    variants = [CLASSES, CLASSES.replace("EF", "VA"), "\n  - {name: first, dscp: CS5, deadline: 9s}" + CLASSES, CLASSES]
    done, ending = 0, asyncio.Event()
    async with inferlane.Client(f"{scheme}://{host}:{port}", insecure=True) as client:

        async def ask(traffic_class: str) -> None:
            nonlocal done
            while not ending.is_set():
                reply = await client.infer("identity", X, cls=traffic_class)
                assert reply.outputs["y"].tolist() == [[1, 1]]
                assert reply.served_class == traffic_class
                done += 1

        async with asyncio.TaskGroup() as group:
            for each in ("realtime", "interactive", "batch"):
                group.create_task(ask(each))
            before = CLASSES
            for times, classes in enumerate(variants, start=1):
                had = done

                async def some_more(had: int = had) -> bool:
                    return done >= had + 10

                rewrite(conf, before, classes)
                before = classes
                await reloaded(gateway, times=times)
                await eventually(some_more)
            ending.set()
    assert not any('"level":"error"' in line for line in gateway.lines)


async def test_a_bad_file_is_told_with_its_line_and_the_old_one_stays(gateway: GatewayProcess, conf: Path) -> None:
    host, port = await gateway.address()
    rewrite(conf, "dscp: AF21", "dscp: AF99")
    failed = await reloaded(gateway, "reload_failed")
    assert failed["level"] == "error"
    assert f"{conf}:4:" in str(failed["problems"]) and "AF99" in str(failed["problems"])
    async with inferlane.Client(f"udp://{host}:{port}") as client:
        assert (await client.infer("identity", X)).served_class == "interactive"
    rewrite(conf, "dscp: AF99", "dscp: AF31")
    await reloaded(gateway)


async def test_what_needs_a_restart_is_told_and_not_half_done(gateway: GatewayProcess, conf: Path) -> None:
    address = await gateway.address()
    rewrite(conf, "127.0.0.1:0", "127.0.0.2:0")
    rewrite(conf, "name: identity", "name: other")
    waits = await reloaded(gateway, "needs_restart")
    assert waits["sections"] == ["listeners", "pools", "admin"]
    async with http3(address) as client:
        assert (await client.ask(LIVE)).status == 200
    observed = await gateway.observed()
    assert await observed.value("inferlane_endpoint_slots", pool="identity") == 4


async def test_the_log_level_changes_without_a_restart(gateway: GatewayProcess, conf: Path) -> None:
    address = await gateway.address()
    rewrite(conf, "version: 1\n", "version: 1\nlog: {level: warning}\n")
    gateway.signal(signal.SIGHUP)
    observed = await gateway.observed()
    async with http3(address) as client:

        async def quiet() -> bool:
            before = sum("request_finished" in line for line in gateway.lines)
            served = await observed.value("inferlane_requests_total")
            assert (await client.ask(LIVE)).status == 200
            await observed.reaches("inferlane_requests_total", served + 1)
            return sum("request_finished" in line for line in gateway.lines) == before

        await eventually(quiet)
        rewrite(conf, "level: warning", "level: info")
        await reloaded(gateway)
        assert (await client.ask(LIVE)).status == 200
        await gateway.event("request_finished")
