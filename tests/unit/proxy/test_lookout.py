# SPDX-License-Identifier: Apache-2.0
"""Started and closed as one; what each part does is in tests/integration/test_endpoints.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from backends.build import build
from proxy.config.loading import load
from proxy.lookout import Lookout
from proxy.telemetry.metrics import Metrics
from proxy.walk.pool_walk import pool_walks
from qos.settings import class_table


def lookout(folder: Path, socket: Path) -> Lookout:
    file = folder / "g.yaml"
    file.write_text(
        'listeners: [{name: main, bind: ["127.0.0.1:0"], tls: development}]\n'
        'pools: [{name: p, model: m, endpoints: [{oip: "http://127.0.0.1:1"}], health: {probe: {every: 100ms}}}]\n'
        f"admin: {{socket: {socket}}}\n"
    )
    config = load(file)
    routes = build(config.pools)
    walks = pool_walks(config.pools, routes, class_table(config.classes), clock=time.monotonic)
    return Lookout(config, routes, walks, clock=time.monotonic)


async def test_its_socket_is_there_while_it_runs_and_its_counts_are_told(tmp_path: Path) -> None:
    socket = tmp_path / "admin.sock"
    looking, metrics = lookout(tmp_path, socket), Metrics(version="test")
    looking.tell(metrics)
    await looking.start()
    assert socket.is_socket()
    assert [each["name"] for each in (await looking.endpoints.pools())["pools"]] == ["p"]
    assert "inferlane_probes" in metrics.page()[0].decode()
    await looking.close()
    assert not socket.exists()


async def test_what_cannot_open_its_socket_leaves_nothing_running(tmp_path: Path) -> None:
    looking = lookout(tmp_path, tmp_path / "no" / "such" / "folder" / "admin.sock")
    with pytest.raises(OSError, match=r"admin\.sock"):
        await looking.start()
    await looking.close()
