# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from qos.tc.change import watcher
from qos.tc.change.ledger import LastRollback, Ledger, Pending, boot_clock, boot_id
from tests.fakes.link_policies import policy_of
from tests.fakes.programs import until


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "qos")


def pending_until(deadline: float | None, **fields) -> Pending:
    given = Pending(
        id="a1",
        policy=policy_of(),
        previous=None,
        snapshots=(),
        programs={},
        classifiers=(),
        boot_id=boot_id(),
        deadline=deadline,
        confirm_s=60,
        applier=1,
        done=True,
    )
    return replace(given, **fields)


class Watch:
    """A watch with a clock that moves when it sleeps."""

    def __init__(self, ledger, pending):
        self.ledger, self.pending = ledger, pending
        self.now, self.undone, self.during = 0.0, [], {}

    def sleep(self, seconds):
        assert 0 < seconds <= 0.5
        self.now += seconds
        for instant in [each for each in self.during if each <= self.now]:
            self.during.pop(instant)()

    def __call__(self) -> bool:
        def put_back(pending):
            self.undone.append((self.now, pending))
            return True

        return watcher.watch(self.ledger, self.pending, put_back=put_back, clock=lambda: self.now, sleep=self.sleep)


@pytest.fixture
def watch(ledger):
    pending = pending_until(60)
    ledger.write(pending)
    return Watch(ledger, pending)


def test_it_undoes_at_the_deadline(watch):
    assert watch()
    assert watch.undone == [(60, watch.pending)]


def test_it_ends_soon_after_the_confirmation(watch):
    watch.during[30] = partial(watch.ledger.remove, Pending)
    assert not watch()
    assert watch.now == 30 and watch.undone == []


def test_another_change_has_another_watcher(watch):
    watch.during[30] = partial(watch.ledger.write, replace(watch.pending, id="b2"))
    assert not watch()
    assert watch.now == 30 and watch.undone == []


def test_more_time_is_waited_for(watch):
    longer = replace(watch.pending, deadline=200)
    watch.during[30] = partial(watch.ledger.write, longer)
    assert watch()
    assert watch.undone == [(200, longer)]


def test_a_damaged_book_is_no_confirmation(watch):
    watch.during[30] = partial(watch.ledger.file(Pending).write_bytes, b"{")
    assert watch()
    assert watch.undone == [(60, watch.pending)]


def test_what_needs_no_confirmation_is_not_watched(ledger):
    assert not Watch(ledger, pending_until(None))()


def test_a_timer_of_systemds_holds_the_deadline(ledger, tmp_path):
    command = watcher.timer_command(ledger, pending_until(160.5), locks=tmp_path, now=100.0)
    assert command[:2] == ["systemd-run", "--quiet"]
    assert "--on-active=60.500s" in command and "--timer-property=AccuracySec=100ms" in command
    assert "--unit=inferlane-qos-a1-160500" in command
    assert command[-4:] == [str(ledger.folder), "a1", "--locks", str(tmp_path)]
    late = watcher.timer_command(ledger, pending_until(1), locks=tmp_path, now=100.0)
    assert "--on-active=0.000s" in late


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def watchers_of(ledger) -> list[int]:
    listed = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True, timeout=20).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"qos.tc.change.watcher {ledger.folder} " in line]


@pytest.fixture
def own_session(monkeypatch):
    monkeypatch.setattr(watcher, "_has_systemd", lambda: False)


def test_an_armed_one_watches_in_a_session_of_its_own(ledger, tmp_path, own_session):
    pending = pending_until(boot_clock() + 600)
    ledger.write(pending)

    watcher.arm(ledger, pending, locks=tmp_path)

    (pid,) = watchers_of(ledger)
    try:
        assert os.getsid(pid) not in (os.getsid(0), pid)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        ledger.remove(Pending)
        until(lambda: None if alive(pid) else True, "the watcher's end")
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    assert "change a1: confirmed, undone or replaced" in (ledger.folder / "watcher.log").read_text()


@pytest.mark.needs_root
def test_an_armed_one_undoes_and_says_so(ledger, tmp_path, own_session):
    pending = pending_until(boot_clock() + 0.2)
    ledger.write(pending)

    watcher.arm(ledger, pending, locks=tmp_path)

    last = until(lambda: ledger.read(LastRollback), "the watcher's note")
    assert (last.id, last.why, last.failure) == ("a1", "nobody confirmed it within 60 s", None)
    until(lambda: True if ledger.read(Pending) is None else None, "the end of what was pending")


def test_one_that_cannot_start_is_told(ledger, tmp_path, monkeypatch, own_session):
    ledger.write(pending_until(60))
    monkeypatch.setattr(watcher.sys, "executable", "/bin/false")
    with pytest.raises(watcher.ArmError, match=r"no watcher could be started, so nothing was changed; .*watcher.log"):
        watcher.arm(ledger, pending_until(60), locks=tmp_path)
    monkeypatch.setattr(watcher.sys, "executable", "/nowhere")
    with pytest.raises(watcher.ArmError, match=r"nothing was changed: .*nowhere"):
        watcher.arm(ledger, pending_until(60), locks=tmp_path)


def fake_systemd_run(folder, monkeypatch, code: int) -> Path:
    """A systemd-run that notes its arguments."""
    program = folder / "systemd-run"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(watcher, "_has_systemd", lambda: True)
    return folder / "asked"


def test_where_systemd_runs_its_timer_is_asked(ledger, tmp_path, monkeypatch):
    asked = fake_systemd_run(tmp_path, monkeypatch, 0)
    pending = pending_until(boot_clock() + 600)
    ledger.write(pending)
    watcher.arm(ledger, pending, locks=tmp_path)
    assert f"-m qos.tc.change.watcher {ledger.folder} a1 --locks {tmp_path}" in asked.read_text()
    assert watchers_of(ledger) == []


def test_where_systemd_refuses_a_process_watches(ledger, tmp_path, monkeypatch):
    fake_systemd_run(tmp_path, monkeypatch, 1)
    pending = pending_until(boot_clock() + 600)
    ledger.write(pending)
    watcher.arm(ledger, pending, locks=tmp_path)
    (pid,) = watchers_of(ledger)
    ledger.remove(Pending)
    until(lambda: None if alive(pid) else True, "the watcher's end")


def test_the_log_is_not_written_where_a_link_leads(ledger, tmp_path):
    elsewhere = tmp_path / "precious"
    elsewhere.write_bytes(b"x" * 300 * 1024)
    ledger.folder.mkdir()
    (ledger.folder / "watcher.log").symlink_to(elsewhere)
    with pytest.raises(watcher.ArmError, match="no watcher could be started, so nothing was changed: "):
        watcher._start(ledger, pending_until(boot_clock() + 60), tmp_path)
    assert elsewhere.stat().st_size == 300 * 1024
