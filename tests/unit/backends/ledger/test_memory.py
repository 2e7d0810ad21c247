# SPDX-License-Identifier: Apache-2.0
"""One file mapped twice, and locks that other processes see."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from backends.ledger.layout import Layout
from backends.ledger.memory import Memory

LAYOUT = Layout(2, 1, 1)
TRY = "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]))"


@pytest.fixture
def memory():
    fd = os.memfd_create("test")
    os.ftruncate(fd, LAYOUT.bytes)
    memory = Memory(fd, LAYOUT)
    yield memory
    memory.close()


def other_process_gets(memory: Memory, byte: int) -> bool:
    command = [sys.executable, "-S", "-c", TRY, str(memory.fd), str(byte)]
    return subprocess.run(command, pass_fds=[memory.fd], stderr=subprocess.DEVNULL, check=False).returncode == 0


def test_words_are_seen_by_whoever_maps_the_file(memory):
    other = Memory(os.dup(memory.fd), LAYOUT)
    memory.cells[3], memory.numbers[4] = -7, 0.5
    assert (other.cells[3], other.numbers[4]) == (-7, 0.5)
    other.close()
    assert repr(memory) == "<Memory Layout(rows=2, pools=1, columns=1)>"


def test_a_lock_excludes_other_processes_from_its_byte_alone(memory):
    with memory.locked(1):
        assert not other_process_gets(memory, 1)
        assert other_process_gets(memory, 2)
    assert other_process_gets(memory, 1)
