# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from proxy.cli import main
from proxy.commands import qos_cli
from qos.tc.change.ledger import Confirmed, LastRollback, Pending
from qos.tc.errors import KernelError
from tests.fakes.tc_site import OLD_KERNEL, FakePlace

CONFIG = """\
listeners: [{name: main, bind: ["127.0.0.1:0"], accept: [udp]}]
pools: [{name: m, model: m, endpoints: [{oip: "http://127.0.0.1:9"}]}]
interfaces: [{name: eth0, egress: 20mbit}]
safety: {confirm: 90s}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    made = FakePlace(tmp_path)
    monkeypatch.setattr(qos_cli, "_site", lambda state_dir: made.site)
    return made


@pytest.fixture
def conf(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    return file


def qos(*arguments) -> int:
    return main(["qos", *map(str, arguments)])


@pytest.mark.parametrize("command", ["probe", "plan", "apply", "confirm", "rollback", "release", "status"])
def test_every_command_has_help(capsys, command):
    assert qos(command, "--help") == 0
    assert f"Usage: inferlane qos {command}" in capsys.readouterr().out


def test_the_commands_load_no_netlink_before_they_are_called():
    program = "import sys, proxy.cli; proxy.cli.main(['qos', '--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"pyroute2", "qos.tc.change.making", "proxy.commands.qos_report", "numpy"} & set(done.stderr.split())


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        (["c.yaml", "--confirm"], ["c.yaml", "--confirm", ""]),
        (["--confirm", "c.yaml"], ["--confirm", "", "c.yaml"]),
        (["--confirm", "--json", "c.yaml"], ["--confirm", "", "--json", "c.yaml"]),
        (["c.yaml", "--confirm", "5s"], ["c.yaml", "--confirm", "5s"]),
        (["c.yaml", "--confirm=5s"], ["c.yaml", "--confirm=5s"]),
        (["c.yaml"], ["c.yaml"]),
    ],
)
def test_confirm_may_have_a_time(given, filled):
    assert qos_cli.with_time(given) == filled


def test_plan_ends_with_3_while_there_is_something_to_do(capsys, place, conf):
    assert qos("plan", conf) == 3
    assert f"nothing is changed yet: inferlane qos apply {conf} --confirm" in capsys.readouterr().out
    assert qos("plan", conf, "--json") == 3
    assert json.loads(capsys.readouterr().out)["changes"] > 5
    assert qos("apply", conf) == 0
    assert qos("plan", conf) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_apply_and_confirm(capsys, place, conf):
    assert qos("apply", conf, "--confirm") == 0
    pending = place.ledger.read(Pending)
    assert pending.confirm_s == 90
    assert "it is put back in 90s, unless you say before" in capsys.readouterr().out
    assert qos("confirm") == 0
    assert capsys.readouterr().out == f"change {pending.id} is confirmed; it stands after a restart, too\n"
    assert qos("confirm") == 1
    assert capsys.readouterr().err == "inferlane: nothing waits for a confirmation\n"
    conf.write_text(CONFIG.replace("20mbit", "30mbit"))
    assert qos("apply", conf, "--confirm", "5m", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pending"]["seconds_left"] == 300.0


@pytest.mark.parametrize(("time", "complaint"), [("5", "has no unit"), ("1s", "at least 5s"), ("2000m", "at most")])
def test_a_time_to_confirm_that_makes_no_sense(capsys, place, conf, time, complaint):
    assert qos("apply", conf, "--confirm", time) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1
    assert place.kernel.calls == 0


def test_a_plan_that_was_kept(capsys, place, conf, tmp_path):
    file = tmp_path / "plan"
    assert qos("plan", conf, "--out", file) == 3
    assert f"inferlane qos apply {file} --confirm" in capsys.readouterr().out
    assert qos("apply", file) == 0
    conf.write_text(CONFIG.replace("20mbit", "30mbit"))
    assert qos("plan", conf, "--out", file) == 3
    place.kernel.set_gso_max_size("eth0", 1111)
    capsys.readouterr()
    assert qos("apply", file) == 1
    assert "the kernel's state moved since this plan was made" in capsys.readouterr().err
    conf.write_text(CONFIG.replace("20mbit", "40mbit"))
    assert qos("apply", file) == 1
    assert "gateway.yaml changed since this plan was made" in capsys.readouterr().err
    file.write_bytes(file.read_bytes().replace(b'"format": 1', b'"format": 2'))
    assert qos("apply", file) == 2
    assert "a plan of format 2" in capsys.readouterr().err
    assert qos("plan", conf, "--out", tmp_path / "none" / "plan") == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_rollback_and_release(capsys, place, conf):
    assert qos("rollback") == 1
    assert "there is nothing to go back to" in capsys.readouterr().err
    qos("apply", conf, "--confirm")
    assert qos("rollback") == 0
    assert "is undone" in capsys.readouterr().out
    qos("apply", conf)
    assert qos("release", conf) == 0
    assert "all that was made is removed" in capsys.readouterr().out
    assert qos("release", conf) == 0
    assert "nothing of ours was there" in capsys.readouterr().out
    assert qos("release") == 0
    assert "nothing is known to have been made here" in capsys.readouterr().out


def test_status(capsys, place, conf):
    assert qos("status", "--over", "10ms") == 0
    assert capsys.readouterr().out == "no policy stands: `inferlane qos apply CONF` makes one\n"
    assert qos("status", conf, "--over", "10ms") == 0
    assert "not as promised" in capsys.readouterr().out
    qos("apply", conf, "--confirm")
    assert qos("status", "--over", "10ms") == 0
    out, err = capsys.readouterr()
    assert "all is as promised" in out
    assert f"change {place.ledger.read(Pending).id} waits: it is put back in 90s" in err
    assert qos("status", "--json", "--over", "10ms") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["confirmed"], found["pending"]["seconds_left"]) == (None, 90.0)
    assert qos("status", "--over", "soon") == 2


def test_what_happened_while_nobody_looked_is_told(capsys, place, conf):
    place.ledger.write(LastRollback(id="b2", at="noon", why="nobody confirmed it within 5 s", failure=None))
    for verb in (("plan", conf), ("status",)):
        qos(*verb)
        assert "change b2 was put back at noon, because nobody confirmed it" in capsys.readouterr().err


def test_a_policy_that_cannot_be_kept_is_a_line_for_each_reason(capsys, place, conf):
    conf.write_text(CONFIG.replace("eth0, egress", "eth9, egress"))
    assert qos("plan", conf) == 1
    assert "eth9: no such interface" in capsys.readouterr().err


def test_a_config_without_interfaces_is_told(capsys, place, conf):
    conf.write_text("\n".join(CONFIG.splitlines()[:2]))
    assert qos("plan", conf) == 0
    out, err = capsys.readouterr()
    assert "nothing to do" in out
    assert err == f"inferlane: {conf} names no interfaces: there is nothing to shape\n"


def test_damaged_books_are_one_line(capsys, place, conf):
    qos("apply", conf)
    place.ledger.file(Confirmed).write_text("{")
    capsys.readouterr()
    assert qos("plan", conf) == 1
    err = capsys.readouterr().err
    assert "confirmed.json: damaged" in err and err.count("\n") == 1


def test_probe(capsys, conf, monkeypatch):
    monkeypatch.setattr("qos.tc.kernel.probe.probe", lambda netns: OLD_KERNEL)
    assert qos("probe") == 0
    assert "CONFIG_NET_SCH_CAKE=m" in capsys.readouterr().out
    assert qos("probe", conf, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["kernel"] == "6.1.0-test"

    def refuse(netns):
        raise KernelError(5, "no", "ask")

    monkeypatch.setattr("qos.tc.kernel.probe.probe", refuse)
    assert qos("probe") == 1
    assert capsys.readouterr().err == "inferlane: ask: no\n"


def test_a_site_of_its_own(tmp_path):
    site = qos_cli._site(tmp_path)
    assert site.ledger.folder == tmp_path / "qos"
    assert site.lock_of(None).name.startswith("netns-")
