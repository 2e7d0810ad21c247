# SPDX-License-Identifier: Apache-2.0
"""Several workers' ledgers in one process, where only the records are shared: nothing runs at the same instant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from backends.ledger.segment import Ledger
from backends.pool import Pool
from proxy.walk.gate import Gate
from qos.traffic_class import ClassTable
from tests.fakes.fake_time import FakeTimeLoop
from tests.fakes.gate_story import Story


def beside(ledger: Ledger, *, row: int | None) -> Ledger:
    """The same ledger once more, as another process has it."""
    return Ledger.attach(os.dup(ledger.fd), row=row, event_fds=[os.dup(each) for each in ledger.event_fds])


@contextmanager
def attached(ledger: Ledger, *, row: int) -> Iterator[Ledger]:
    """For a while."""
    other = beside(ledger, row=row)
    yield other
    other.close()


class Crew:
    """One supervisor's ledger, and one for each row."""

    def __init__(self, rows: int, **sizes: int) -> None:
        self.supervisor = Ledger.create(rows, **sizes)
        self.workers = [self.attach(row) for row in range(rows)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attach(self, row: int | None) -> Ledger:
        """As a process of its own would."""
        return beside(self.supervisor, row=row)

    def close(self) -> None:
        for each in (*self.workers, self.supervisor):
            each.close()


def shared_gate(pool: Pool, classes: ClassTable, ledger: Ledger, loop: FakeTimeLoop, **bounds: int) -> Gate:
    """As `pool_walks` makes it."""
    pool.share(ledger)
    return Gate(pool, classes, clock=loop.time, line=ledger.line(pool.name), **bounds)


def stories(crew: Crew, pools: Sequence[Pool], classes: ClassTable, loop: FakeTimeLoop, **bounds: int) -> list[Story]:
    """One gate for each worker."""
    return [
        Story(loop, shared_gate(pool, classes, ledger, loop, **bounds))
        for pool, ledger in zip(pools, crew.workers, strict=True)
    ]
