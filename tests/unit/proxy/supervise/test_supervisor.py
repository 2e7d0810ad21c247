# SPDX-License-Identifier: Apache-2.0
"""What it is made of. Its life: tests/integration/test_workers.py, test_drain.py, test_reload.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from proxy.config.loading import load_text
from proxy.supervise.supervisor import workers_of

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
    assert workers_of(config) == (count or len(os.sched_getaffinity(0)))


def test_auto_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(192)))
    assert workers_of(load_text(LEAST + "workers: auto", "gateway.yaml")[0]) == 64
