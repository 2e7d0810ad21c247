# SPDX-License-Identifier: Apache-2.0
"""`inferlane diagnose`, as somebody types it."""

from __future__ import annotations

import json

import msgspec

from proxy.cli import main
from proxy.commands.terminal import FAILED, MISUSED
from tests.fakes.reports import BROKEN, KEPT, admin_port

CONFIG = """\
version: 1
listeners: [{{name: main, bind: ["127.0.0.1:0"], accept: [udp]}}]
pools: [{{name: magika, model: magika, endpoints: [{{oip: "http://127.0.0.1:9"}}]}}]
admin: {{bind: "127.0.0.1:{port}"}}
"""


def test_a_broken_promise_is_told_and_is_exit_code_1(capsys):
    with admin_port(msgspec.json.encode(BROKEN)) as port:
        assert main(["diagnose", f"http://127.0.0.1:{port}"]) == FAILED
    assert "Add endpoints to pools[magika].endpoints." in capsys.readouterr().out


def test_promises_that_hold_are_exit_code_0_by_the_config_too(capsys, tmp_path):
    conf = tmp_path / "gateway.yaml"
    with admin_port(msgspec.json.encode(KEPT)) as port:
        conf.write_text(CONFIG.format(port=port))
        assert main(["diagnose", str(conf)]) == 0
    assert "Nobody asked" in capsys.readouterr().out


def test_programs_get_json(capsys):
    with admin_port(msgspec.json.encode(BROKEN)) as port:
        assert main(["diagnose", f"http://127.0.0.1:{port}", "--json"]) == FAILED
    told = json.loads(capsys.readouterr().out)
    assert told["promises"][0]["parts"]["queue"]["p99_s"] == 0.049
    assert told["promises"][0]["words"] == ["Add endpoints to pools[magika].endpoints."]


def test_no_gateway_is_exit_code_1_and_one_line(capsys):
    with admin_port(b"") as port:
        pass
    assert main(["diagnose", f"http://127.0.0.1:{port}"]) == FAILED
    assert "Connection refused; is the gateway running" in capsys.readouterr().err


def test_a_bad_address_is_misuse(capsys):
    assert main(["diagnose", "ftp://127.0.0.1:21"]) == MISUSED
    assert "write it as http://127.0.0.1:9433" in capsys.readouterr().err


def test_a_config_that_is_not_there_is_misuse(capsys, tmp_path):
    assert main(["diagnose", str(tmp_path / "none.yaml")]) == MISUSED
    assert "none.yaml" in capsys.readouterr().err
