# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: what changes at once, what waits for a restart as a whole, and what is refused without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.config.loading import Config, load
from proxy.reload import Merged, merge, reload

CLASSES = """
  - {name: realtime, dscp: EF, deadline: 1s}
  - {name: bulk, dscp: AF11, deadline: 9s, default: true}
"""
TEXT = """
version: 1
classes: CLASSES
rules: []
trust: {class_from: ["127.0.0.0/8"]}
listeners:
  - {name: main, bind: ["127.0.0.1:0"], tls: development, max_class: realtime}
  - {name: lan, bind: ["127.0.0.1:4444"], accept: [udp]}
pools: [{name: all, model: "*", endpoints: [{oip: "http://127.0.0.1:9"}]}]
interfaces: [{name: eth0, egress: 10mbit}]
admin: {bind: "127.0.0.1:0"}
log: {level: info}
""".replace("CLASSES", CLASSES)


def read(folder: Path, *changes: tuple[str, str], text: str = TEXT) -> Config:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = folder / "gateway.yaml"
    file.write_text(text)
    return load(file)


class Running:
    """A gateway of which only the config changes."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def use(self, merged: Merged) -> None:
        self.config = merged.config


@pytest.mark.parametrize(
    ("change", "section"),
    [
        (("dscp: EF", "dscp: VA"), "classes"),
        (("deadline: 1s", "deadline: 2s"), "classes"),
        (("rules: []", 'rules: [{when: {path: "*"}, class: bulk}]'), "rules"),
        (("127.0.0.0/8", "10.0.0.0/8"), "trust"),
        (("level: info", "level: debug"), "log"),
        (("max_class: realtime", "max_class: bulk"), "listeners"),
        (("egress: 10mbit", "egress: 20mbit"), "interfaces"),
    ],
)
def test_what_can_change_while_requests_run_does(tmp_path, change, section):
    changed = read(tmp_path, change)
    merged = merge(read(tmp_path), changed)
    assert (merged.changed, merged.restart) == ((section,), ())
    assert merged.config == changed


@pytest.mark.parametrize(
    ("change", "section"),
    [
        (('["127.0.0.1:0"], tls', '["127.0.0.1:5555"], tls'), "listeners"),
        (("accept: [udp]", "accept: [udp], max_body: 1KiB"), "listeners"),
        (("name: lan", "name: other"), "listeners"),
        (("name: all", "name: most"), "pools"),
        (("127.0.0.1:9", "127.0.0.1:8"), "pools"),
        (('admin: {bind: "127.0.0.1:0"}', 'admin: {bind: "127.0.0.1:1"}'), "admin"),
    ],
)
def test_what_a_gateway_is_made_of_waits_and_the_rest_does_not(tmp_path, change, section):
    running = read(tmp_path)
    merged = merge(running, read(tmp_path, change, ("dscp: EF", "dscp: VA")))
    assert (merged.changed, merged.restart) == (("classes",), (section,))
    assert merged.config == read(tmp_path, ("dscp: EF", "dscp: VA"))


def test_a_restart_that_is_due_is_told_until_it_came(tmp_path):
    running, changed = read(tmp_path), read(tmp_path, ("name: all", "name: most"))
    first = merge(running, changed)
    assert merge(first.config, changed).restart == ("pools",)


def test_a_class_that_an_open_door_needs_cannot_go(tmp_path):
    renamed = read(tmp_path, ("realtime", "urgent"))
    assert merge(read(tmp_path), renamed).config.listeners[0].max_class == "urgent"
    door_gone = TEXT.replace("  - {name: main", "  - {name: fresh").replace("realtime", "urgent")
    with pytest.raises(ValueError, match=r"listener main stays open until a restart, and its max_class realtime"):
        merge(read(tmp_path), read(tmp_path, text=door_gone))


def test_interfaces_cannot_begin_without_the_helper_that_keeps_them(tmp_path):
    without = read(tmp_path, ("interfaces:", "# interfaces:"))
    merged = merge(without, read(tmp_path), helped=False)
    assert (merged.changed, merged.restart) == ((), ("interfaces",))
    assert merge(read(tmp_path), without).changed == ("interfaces",)


def test_interfaces_come_back_to_the_helper_that_is_there(tmp_path):
    without = read(tmp_path, ("interfaces:", "# interfaces:"))
    gone = merge(read(tmp_path), without, helped=True)
    back = merge(gone.config, read(tmp_path), helped=True)
    assert (back.changed, back.restart) == (("interfaces",), ())
    assert back.config == read(tmp_path)


async def test_a_good_file_takes_effect_and_says_what_waits(tmp_path):
    gateway = Running(read(tmp_path))
    read(tmp_path, ("dscp: EF", "dscp: VA"), ("name: all", "name: most"))
    with capture_logs() as logs:
        assert await reload(tmp_path / "gateway.yaml", gateway)
    assert gateway.config.classes[0].dscp == 44
    waits, done = logs
    assert (waits["event"], waits["log_level"], waits["sections"]) == ("needs_restart", "warning", ["pools"])
    assert "needs a restart" in waits["detail"]
    assert (done["event"], done["changed"]) == ("reloaded", ["classes"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (TEXT.replace("dscp: EF", "dscp: EV"), "gateway.yaml:4:28: classes[0].dscp: "),
        (TEXT.replace("version: 1", "version: ["), "gateway.yaml:4:3: not YAML"),
        (TEXT.replace("max_class: realtime", "max_class: bult"), "did you mean bulk"),
        (TEXT.replace("{name: main", "{name: fresh").replace("realtime", "urgent"), "max_class realtime is no more"),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_told_with_its_place(tmp_path, text, problem):
    before = read(tmp_path)
    gateway = Running(before)
    (tmp_path / "gateway.yaml").write_text(text)
    with capture_logs() as logs:
        assert not await reload(tmp_path / "gateway.yaml", gateway)
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("reload_failed", "error")
    assert problem in line["problems"][0]
    assert gateway.config is before


async def test_a_file_that_is_gone_is_told_like_any_other_fault(tmp_path):
    gateway = Running(read(tmp_path))
    with capture_logs() as logs:
        assert not await reload(tmp_path / "missing.yaml", gateway)
    assert "No such file" in logs[0]["problems"][0]


def test_more_classes_than_the_workers_that_run_can_share_are_refused(tmp_path):
    """The file may well be right for the one worker that it asks for; two are what runs."""
    more = "".join(f"  - {{name: c{each}, dscp: DF, deadline: 9s}}\n" for each in range(31))
    running = read(tmp_path, ("log:", "workers: 2\nlog:"))
    wanted = read(tmp_path, (CLASSES, CLASSES + more), ("log:", "workers: 1\nlog:"))
    assert len(wanted.classes) == 33
    with pytest.raises(ValueError, match="33 classes; several workers can keep the order of 32"):
        merge(running, wanted)
    assert len(merge(read(tmp_path), wanted).config.classes) == 33
