# SPDX-License-Identifier: Apache-2.0
"""What it is made of. Its life: tests/integration/test_workers.py, test_drain.py, test_reload.py."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from proxy.config.loading import load_text
from proxy.supervise.cpus import available
from proxy.supervise.supervisor import _whenever, workers_of

LEAST = """\
listeners: [{name: a, bind: ["127.0.0.1:0"], accept: [udp]}]
pools: [{name: p, model: "*", endpoints: [{oip: "http://127.0.0.1:9"}]}]
"""


def test_it_stays_small_for_it_loads_no_quic_no_models_and_no_faster_loop() -> None:
    heavy = ("aioquic", "onnxruntime", "numpy", "uvloop", "httptools", "cryptography")
    code = f"import sys, proxy.cli, proxy.supervise.supervisor; print(*({{*sys.modules}} & {{*{heavy}}}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


@pytest.mark.parametrize(("written", "count"), [("", 1), ("workers: 3", 3), ("workers: auto", None)])
def test_how_many_workers(written: str, count: int | None) -> None:
    config, _ = load_text(LEAST + written, "gateway.yaml")
    assert workers_of(config) == (count or available())


def test_auto_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.supervise.supervisor.available", lambda: 192)
    assert workers_of(load_text(LEAST + "workers: auto", "gateway.yaml")[0]) == 64


async def test_a_signal_that_could_not_be_acted_on_is_not_the_last() -> None:
    """As when there is no thread left to read the file in."""
    happens, done = asyncio.Event(), asyncio.Event()
    tried = []

    async def act() -> None:
        tried.append(1)
        if len(tried) == 1:
            happens.set()
            raise RuntimeError("can't start new thread")
        done.set()

    acting = asyncio.create_task(_whenever(happens, act))
    happens.set()
    with capture_logs() as logged:
        async with asyncio.timeout(10.0):
            await asyncio.wait([acting, asyncio.create_task(done.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert done.is_set() and [each["log_level"] for each in logged] == ["error"]
    acting.cancel()
