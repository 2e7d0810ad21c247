# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

from qos.selftest.traffic import Flood, flood


def test_a_flood_flows_wherever_it_is_started_and_runs_nothing_that_lies_there(tmp_path, monkeypatch):
    for name in ("qos/__init__.py", "qos/selftest/__init__.py", "qos/selftest/traffic.py", "argparse.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    with socket.socket(type=socket.SOCK_DGRAM) as sink, socket.socket(type=socket.SOCK_DGRAM) as source:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(20)
        source.connect(sink.getsockname())
        with flood(Flood(kind="udp", rate=1_000_000, dscp=1, seconds=20), source):
            assert len(sink.recv(2048)) == 1200
