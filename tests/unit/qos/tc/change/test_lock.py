# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from qos.tc.change.lock import LockError, lock_file, lock_folder, locked
from tests.fakes.programs import until

HOLDER = """\
import sys, time
from pathlib import Path
from qos.tc.change.lock import locked
with locked([Path(sys.argv[1])], who="qos apply"):
    print("held", flush=True)
    time.sleep(600)
"""


class Time:
    """A clock that moves when somebody sleeps."""

    def __init__(self):
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock `a`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_it_is_held_by_one_and_free_afterwards(tmp_path):
    time = Time()
    with (
        locked([tmp_path / "a"], who="one"),
        pytest.raises(LockError),
        locked([tmp_path / "a"], who="two", clock=time.clock, sleep=time.sleep),
    ):
        pass
    with locked([tmp_path / "a"], who="three"):
        pass


def test_who_waits_in_vain_learns_who_holds_it(tmp_path, holder):
    time = Time()
    with (
        pytest.raises(LockError) as refused,
        locked([tmp_path / "a"], who="x", clock=time.clock, sleep=time.sleep),
    ):
        pass
    assert str(refused.value) == (
        f"qos apply (process {holder.pid}) is changing traffic control here and holds {tmp_path}/a; "
        "waited 5 s; try again when it is done"
    )
    assert 105 <= time.now < 106


def test_the_death_of_its_holder_frees_it(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    until(lambda: holder.poll(), "the holder's end")
    with locked([tmp_path / "a"], who="x", wait_s=0):
        pass


def test_what_fails_gives_back_those_it_has(tmp_path, holder):
    with pytest.raises(LockError), locked([tmp_path / "0", tmp_path / "a"], who="x", wait_s=0):
        pass
    with locked([tmp_path / "0"], who="x", wait_s=0):
        pass


def test_a_child_does_not_inherit_it(tmp_path):
    with locked([tmp_path / "a"], who="x"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with locked([tmp_path / "a"], who="y", wait_s=0):
            pass
    finally:
        child.communicate()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockError, match="file: File exists; the lock"), locked([tmp_path / "file/a"], who="x"):
        pass


def test_our_own_namespace_is_named_by_its_inode(tmp_path):
    assert lock_file(None, tmp_path) == tmp_path / f"netns-{os.stat('/proc/self/ns/net').st_ino}.lock"


def test_locks_lie_where_everybody_looks(tmp_path, monkeypatch):
    monkeypatch.setattr("qos.tc.change.lock.LOCKS", tmp_path / "run")
    monkeypatch.setattr("qos.tc.change.lock.os.geteuid", lambda: 1000)
    assert lock_folder(tmp_path) == tmp_path  # there is no such folder, and we may not make one
    (tmp_path / "run").mkdir()
    assert lock_folder(tmp_path) == tmp_path / "run"
    monkeypatch.setattr("qos.tc.change.lock.os.geteuid", lambda: 0)
    assert lock_folder(tmp_path / "elsewhere") == tmp_path / "run"


def test_a_misspelt_namespace_is_told_and_not_made(tmp_path):
    with pytest.raises(LockError, match="no network namespace is named nowhere-x; `ip netns list`"):
        lock_file("nowhere-x", tmp_path)
    assert not os.path.exists("/run/netns/nowhere-x")
