# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from proxy.cli import main
from tests.fakes.control_socket import control_running

CONFIG = """\
version: 1
listeners: [{name: main, bind: ["127.0.0.1:0"], accept: [udp]}]
pools: [{name: digits, model: digits, endpoints: [{oip: "http://127.0.0.1:9"}]}]
admin: {bind: "127.0.0.1:0", socket: admin.sock}
"""


@pytest.fixture
def conf(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def running(conf):
    """The gateway's admin socket, where the config says it is."""
    with control_running(conf.parent / "admin.sock", "first", "second") as pool:
        yield pool


def test_endpoints_are_a_table_for_people(conf, running, capsys):
    running.endpoints[1].draining = True
    assert main(["endpoints", str(conf)]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "pool digits"
    rows = [line.replace("│", " ").split() for line in lines]
    assert ["first", "-", "healthy", "0", "4", "-", "-"] in rows
    assert ["second", "-", "draining", "0", "4", "-", "-"] in rows


def test_endpoints_are_a_document_for_programs(conf, running, capsys):
    assert main(["endpoints", str(conf), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["pools"][0]["endpoints"]] == ["first", "second"]


def test_drain_and_undrain_say_how_it_stands(conf, running, capsys):
    assert main(["drain", str(conf), "digits", "first"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "first of pool digits: draining, 0 in flight"
    assert running.endpoints[0].draining
    assert main(["undrain", str(conf), "digits", "first", "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said[said.index("{\n") :])["state"] == "healthy"
    assert not running.endpoints[0].draining


def test_what_the_gateway_refuses_is_told_in_one_line(conf, running, capsys):
    assert main(["drain", str(conf), "digits", "third"]) == 1
    said = capsys.readouterr()
    assert said.err == "inferlane: no endpoint of pool digits is named third; there are: first, second\n"
    assert not said.out


def test_a_gateway_that_does_not_run_is_told_in_one_line(conf, capsys):
    assert main(["endpoints", str(conf)]) == 1
    assert "is the gateway of this config running?" in capsys.readouterr().err


def test_without_a_socket_in_the_config_draining_tells_how_to_get_one(conf, capsys):
    conf.write_text(CONFIG.replace(", socket: admin.sock", ""))
    assert main(["drain", str(conf), "digits", "first"]) == 1
    assert "give it `admin: {socket: PATH}`" in capsys.readouterr().err


def test_a_broken_config_is_told_with_its_line(conf, capsys):
    conf.write_text("version: 2\n")
    assert main(["endpoints", str(conf)]) == 2
    assert f"{conf}:1:10:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(None, "-"), (0.25, "0.25 ms"), (12.34, "12.3 ms"), (2500.0, "2.5 s")]
)
def test_times_are_read_at_a_glance(milliseconds, text):
    from proxy.commands.control_cli import _time

    assert _time(milliseconds) == text
