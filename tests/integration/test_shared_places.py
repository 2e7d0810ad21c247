# SPDX-License-Identifier: Apache-2.0
"""Four processes and three places: never a fourth request in flight, and what a killed process held comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.ledger.segment import Ledger
from tests.fakes.ledger_worker import ANSWERED, MOST, ROWS, SLOTS, TASKS, Counts
from tests.fakes.ledgers import attached
from tests.fakes.programs import until

WORKERS = 4
EACH = 2_502
"""Requests of one worker: ten thousand of all, in as many parts as a worker has tasks."""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger.create(ROWS)
    yield ledger
    ledger.close()


@pytest.fixture
def counts(tmp_path: Path) -> Iterator[Counts]:
    counts = Counts.create(tmp_path / "counts")
    yield counts
    counts.close()


@pytest.fixture
def start(ledger: Ledger) -> Iterator[Start]:
    """Starts a program of `tests.fakes` in a row; what still runs at the end is killed."""
    started = []

    def start(program: str, row: int, *arguments: object) -> subprocess.Popen[bytes]:
        events = ",".join(map(str, ledger.event_fds))
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.fakes.{program}", str(ledger.fd), events, str(row), *map(str, arguments)],
            pass_fds=(ledger.fd, *ledger.event_fds),
            stdout=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for each in started:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


def answered(counts: Counts, row: int) -> int:
    return int(counts.words[ANSWERED + row])


def test_there_are_never_more_in_flight_than_places_and_a_killed_workers_come_back(ledger, counts, start, tmp_path):
    workers = [start("ledger_worker", row, tmp_path / "counts", EACH, "0,1,2,3") for row in range(WORKERS)]
    until(lambda: answered(counts, 0) > EACH // 4 or None, "the first worker to have answered a part")
    workers[0].kill()
    workers[0].wait()
    counts.words[0] = 0  # by its own count it holds nothing any more, and only then may others
    ledger.clear_row(0)
    workers[0] = start("ledger_worker", 0, tmp_path / "counts", EACH // 2, "0,1,2,3")
    assert [each.wait(timeout=60) for each in workers] == [0] * WORKERS
    assert counts.words[MOST] == SLOTS
    assert [answered(counts, row) for row in range(1, WORKERS)] == [EACH // TASKS * TASKS] * (WORKERS - 1)
    with attached(ledger, row=ROWS - 1) as observer:
        assert observer.column("digits", "e0").total() == 0


@pytest.mark.parametrize("where", ["rest", "locked"])
def test_a_worker_killed_inside_or_outside_the_lock_keeps_nothing(ledger, counts, start, tmp_path, where):
    holder = start("ledger_holder", 0, where)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    worker = start("ledger_worker", 1, tmp_path / "counts", TASKS, "1")
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(timeout=1.0)  # all places are taken, and a better rank waits
    holder.kill()
    holder.wait()
    ledger.clear_row(0)
    assert worker.wait(timeout=60) == 0
    assert answered(counts, 1) == TASKS


def test_classes_keep_their_order_and_their_floor_over_workers(ledger, counts, start, tmp_path):
    """One worker has only the highest class, and never an empty queue; the other only the lowest."""
    start("ledger_worker", 0, tmp_path / "counts", 1_000_002, "0")
    start("ledger_worker", 1, tmp_path / "counts", 1_000_002, "3")
    until(lambda: answered(counts, 0) > 60 or None, "both to be at work")
    high, low = answered(counts, 0), answered(counts, 1)
    until(lambda: answered(counts, 1) > low + 30 or None, "the lowest class to have turns")
    assert answered(counts, 0) - high > 2 * (answered(counts, 1) - low), "the highest class goes first"
