# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy.cli import main

CONFIG = """\
version: 1
listeners: [{name: main, bind: ["127.0.0.1:0"], accept: [udp]}]
pools: [{name: digits, model: digits, endpoints: [{oip: "http://127.0.0.1:9"}]}]
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    return file


@pytest.mark.parametrize(
    ("document", "code", "out", "err"),
    [
        ({"state": "done", "detail": "generation 1 serves"}, 0, "generation 1 serves\n", ""),
        ({"state": "failed", "detail": "no.pem"}, 1, "", "inferlane: the gateway goes on as it was: no.pem\n"),
    ],
)
def test_the_outcome_is_the_exit_code(conf, capsys, monkeypatch, document, code, out, err) -> None:
    monkeypatch.setattr("proxy.commands.upgrade_client.ask_upgrade", lambda admin, *, wait_s: document)
    assert main(["upgrade", str(conf)]) == code
    assert capsys.readouterr() == (out, err)
    assert main(["upgrade", str(conf), "--json"]) == code
    assert json.loads(capsys.readouterr().out) == document


def test_without_an_admin_socket_people_are_told_of_the_signal(conf, capsys) -> None:
    assert main(["upgrade", str(conf)]) == 1
    assert "SIGUSR2" in capsys.readouterr().err


def test_a_wait_that_is_no_time_is_bad_usage(conf, capsys) -> None:
    assert main(["upgrade", str(conf), "--wait", "soon"]) == 2
