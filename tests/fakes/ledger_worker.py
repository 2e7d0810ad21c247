# SPDX-License-Identifier: Apache-2.0
"""One of several processes that share one endpoint's places: it enters the gate over and over, and counts itself there.

    python -m tests.fakes.ledger_worker LEDGER EVENT,EVENT,... ROW COUNTS REQUESTS RANKS

COUNTS is a file that knows nothing of the ledger: under a lock of its own, each worker writes how many places it holds,
and the most that all held at once is kept.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import random
import sys
import time
from pathlib import Path

from backends.ledger.segment import Ledger
from backends.outcome import Outcome
from proxy.walk.gate import Gate
from tests.fakes.endpoints import class_table_of, pool_of, request_for, traffic_class

SLOTS = 3
TASKS = 6
ROWS = 8
MOST, LEFT, ANSWERED = ROWS, ROWS + 1, ROWS + 2
"""Words of the file behind one for each row: the most held at once, workers that are done, requests by row."""
WORDS = ANSWERED + ROWS


class Counts:
    """What the workers count of themselves."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 8 * WORDS)
        self.words = memoryview(self._map).cast("q")

    @classmethod
    def create(cls, path: Path) -> Counts:
        path.write_bytes(bytes(8 * WORDS))
        return cls(path)

    def add(self, row: int, change: int) -> int:
        """How many all hold now."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self.words[row] += change
            held = sum(self.words[:ROWS])
            self.words[MOST] = max(self.words[MOST], held)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return held

    def close(self) -> None:
        self.words.release()
        self._map.close()
        self._file.close()


async def ask(gate: Gate, counts: Counts, row: int, requests: int, ranks: list[int], rng: random.Random) -> None:
    for _ in range(requests):
        of = traffic_class(rng.choice(ranks), queue_s=60.0, deadline_s=60.0)
        began = time.monotonic()
        place = await gate.enter(request_for(of, now=began))
        counts.add(row, 1)
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.0005)
        else:
            await asyncio.sleep(0)
        counts.add(row, -1)
        place.leave(Outcome.unused())
        counts.words[ANSWERED + row] += 1


async def work(ledger: Ledger, row: int, counts: Counts, requests: int, ranks: list[int]) -> None:
    pool = pool_of(SLOTS)
    pool.share(ledger)
    gate = Gate(pool, class_table_of(4), line=ledger.line(pool.name))
    async with asyncio.TaskGroup() as group:
        for task in range(TASKS):
            group.create_task(ask(gate, counts, row, requests // TASKS, ranks, random.Random(row * TASKS + task)))


def main() -> None:
    fd, events, row, path, requests, ranks = sys.argv[1:]
    ledger = Ledger.attach(int(fd), row=int(row), event_fds=[int(each) for each in events.split(",")])
    counts = Counts(Path(path))
    asyncio.run(work(ledger, int(row), counts, int(requests), [int(each) for each in ranks.split(",")]))
    os._exit(0)


if __name__ == "__main__":
    main()
