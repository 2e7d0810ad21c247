# SPDX-License-Identifier: Apache-2.0
"""Who waits for a place of one pool in all workers, and whose turn it is.

A gate writes down what it has waiting. Who gives a place back counts that, and offers what is free to the worker whose
turn it is by waking it. That one takes it, or finds nothing that it may use (it may have ejected what another finds
healthy) and passes it on: a row that looked since the last place came free is not asked again before the next. A row
that does not even look within `PATIENCE_S` hangs or is dead; turns go past it until it looks again.

All but `announce` are called with the line held (`with line:`), from one thread, and nothing is awaited meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_UN, lockf
from os import eventfd_write
from typing import TYPE_CHECKING

from backends.ledger.layout import RANKS
from backends.ledger.memory import Memory
from backends.ledger.turns import next_row, turn_of
from qos.scheduler import Turns, took_turn

if TYPE_CHECKING:
    import asyncio

__all__ = ["PATIENCE_S", "Line"]

PATIENCE_S = 0.05
"""A worker's loop that takes longer than this for one turn holds up more than this pool."""

_WAITING, _BYTES, _CLIENTS, _SINCE, _TURN, _HELD = range(6)


class Line:
    """One pool's, as one worker sees it. look: dispatches, called when this worker was offered a place."""

    def __init__(
        self,
        memory: Memory,
        *,
        index: int,
        row: int,
        event_fds: Sequence[int],
        listen: Callable[[asyncio.AbstractEventLoop], None],
    ) -> None:
        self.look: Callable[[], None] = _nothing
        self.shares: Sequence[float] = ()
        """Of each rank there is."""
        self.listen = listen
        """On this loop: called before anything is awaited."""
        self._cells, self._numbers, self._fd = memory.cells, memory.numbers, memory.fd
        layout = self._layout = memory.layout
        self._row = row
        self._lock = index + 1
        self._depth = 0
        self._decided: tuple[list[Turns], list[bool]] = ([], [])
        """What was read for the last decision, so that it need not be read again for what follows from it."""
        self._event_fds = event_fds
        pool = self._pool = layout.pool(index)
        self._in_all = layout.waiting_in_all(pool)
        self._seen = layout.seen(pool)
        self._nudged = layout.nudged(pool)
        self._freed = layout.freed(pool)
        self._sheds = layout.sheds(pool)
        self._leaving = layout.leaving(pool)
        self._ranks = [layout.rank(pool, rank) for rank in range(RANKS)]

    def __repr__(self) -> str:
        waiting = self._cells[self._in_all : self._in_all + self._layout.rows].tolist()
        return f"<Line of row {self._row}, {waiting} waiting>"

    def __enter__(self) -> Line:
        if self._depth == 0:
            lockf(self._fd, LOCK_EX, 1, self._lock)
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            lockf(self._fd, LOCK_UN, 1, self._lock)

    def announce(self, rank: int, waiting: int, size: int, clients: int, since: float) -> None:
        """What this worker has waiting in this rank now. since: when the eldest of it came."""
        cells, base = self._cells, self._ranks[rank]
        at = self._at(base, _WAITING)
        before = cells[at]
        if before == 0 and waiting:
            turn = self._at(base, _TURN)
            # Idleness earns nothing: it is level with who was served last.
            self._numbers[turn] = max(self._numbers[turn], self._numbers[base + 2])
        self._numbers[self._at(base, _SINCE)] = since
        cells[self._at(base, _CLIENTS)] = clients
        cells[self._at(base, _BYTES)] = size
        cells[at] = waiting
        cells[self._in_all + self._row] += waiting - before

    def holds(self, held: Sequence[int]) -> None:
        """The places that this worker has, by rank, after ranks changed; what it has waiting is announced anew."""
        for rank, base in enumerate(self._ranks):
            self._cells[self._at(base, _HELD)] = held[rank] if rank < len(held) else 0
            self.announce(rank, 0, 0, 0, 0.0)

    def took(self, rank: int) -> None:
        """One more place is this rank's, in this worker."""
        self._cells[self._at(self._ranks[rank], _HELD)] += 1

    def left(self, rank: int) -> None:
        """One fewer is, and somebody may have it."""
        self._cells[self._at(self._ranks[rank], _HELD)] -= 1
        self._cells[self._freed + self._row] += 1

    def held(self, rank: int) -> int:
        """Places of this rank in all workers."""
        return sum(self._by_row(rank, _HELD))

    def waiting(self, rank: int) -> int:
        """Requests of this rank that wait in all workers."""
        return sum(self._by_row(rank, _WAITING))

    @property
    def others_wait(self) -> bool:
        """Whether anybody waits in another worker."""
        first = self._in_all
        return sum(self._cells[first : first + self._layout.rows]) > self._cells[first + self._row]

    def elsewhere(self, ranks: int) -> list[tuple[int, int]]:
        """What other workers have waiting, requests and bytes, by rank."""
        if not self.others_wait:
            return [(0, 0)] * ranks
        cells = self._cells
        return [
            (
                sum(self._by_row(rank, _WAITING)) - cells[self._at(self._ranks[rank], _WAITING)],
                sum(self._by_row(rank, _BYTES)) - cells[self._at(self._ranks[rank], _BYTES)],
            )
            for rank in range(ranks)
        ]

    def my_turn(self, now: float, places: int) -> int | None:
        """The rank of this worker whose turn it is; None: it is another's, who is told, or nobody waits. places: of
        the whole pool."""
        found = self._whose(now, places, mine=True)
        return None if found is None or found[1] != self._row else found[0]

    def pass_on(self, now: float, places: int, *, free: bool) -> None:
        """This worker looked, and found nothing that it could use. free: there is something, which others may use;
        and what was offered to this one is offered to the next whether or not it can be seen from here."""
        if (self._looked() or free) and self.others_wait:
            self._whose(now, places, mine=False)

    def served(self, rank: int) -> None:
        """It was this worker's turn, as `my_turn` just said, and it had it."""
        self._looked()
        turns, waits = self._decided
        took_turn(turns, waits, rank)
        for each, base in zip(turns, self._ranks, strict=False):
            self._cells[base] = each.passed_over
            self._numbers[base + 1] = each.credit
        base = self._ranks[rank]
        turn = self._at(base, _TURN)
        self._numbers[base + 2] = max(self._numbers[base + 2], self._numbers[turn])
        self._numbers[turn] += 1 / max(1, self._cells[self._at(base, _CLIENTS)])

    def sheds(self, lowest: int, leaving: int) -> None:
        """What this worker could end for others, its lowest rank, -1: nothing; and how many were told to go."""
        self._cells[self._sheds + self._row] = lowest + 1
        self._cells[self._leaving + self._row] = leaving

    @property
    def leaving_elsewhere(self) -> int:
        """How many in other workers were told to go, and have not gone yet."""
        cells, first = self._cells, self._leaving
        return sum(cells[first : first + self._layout.rows]) - cells[first + self._row]

    def ask_to_shed(self, rank: int) -> None:
        """Wake those who could end something for this rank; the first that looks does."""
        for row in range(self._layout.rows):
            if row != self._row and self._cells[self._sheds + row] > rank + 1:
                self._wake(row)

    def nudge(self) -> None:
        """The worker was woken: look, if this pool was meant."""
        at = self._nudged + self._row
        if self._cells[at]:
            self._cells[at] = 0
            self.look()

    def part(self) -> None:
        """The gate is gone from this worker: it holds and awaits nothing any more."""
        self.holds(())
        self.sheds(-1, 0)
        self._cells[self._layout.users(self._pool) + self._row] -= 1

    def _whose(self, now: float, places: int, *, mine: bool) -> tuple[int, int] | None:
        """The rank and the row; another's is offered it."""
        cells, numbers, offered = self._cells, self._numbers, self._pool + 1
        while (found := self._next(places, mine=mine)) is not None:
            row = found[1]
            if row == self._row:
                break
            if cells[offered] != row + 1:
                cells[offered] = row + 1
                numbers[offered + 1] = now
                self._wake(row)
                break
            if now - numbers[offered + 1] <= PATIENCE_S:
                break
            cells[self._layout.absent + row] = 1
        return found

    def _next(self, places: int, *, mine: bool) -> tuple[int, int] | None:
        """The rank and the row that are next of all that may be given a place."""
        asked = self._asked(mine=mine)
        if not asked:
            return None
        rows, held, waits = [], [], []
        for rank in range(len(self.shares)):
            waiting = self._by_row(rank, _WAITING).tolist()
            waits.append(any(waiting))
            rows.append([row for row in asked if waiting[row]] if waits[-1] else [])
            held.append(self.held(rank) if rows[-1] else 0)
        turns = self._turns()
        self._decided = turns, waits
        found = turn_of(turns, rows, held, places)
        if found is None:
            return None
        rank, those = found
        return rank, next_row(those, self._numbers_of(rank, _TURN), self._numbers_of(rank, _SINCE))

    def _asked(self, *, mine: bool) -> list[int]:
        """Rows that have something waiting, and may be given a place. mine: this one, too."""
        cells, rows, me = self._cells, self._layout.rows, self._row
        waiting = cells[self._in_all : self._in_all + rows].tolist()
        seen = cells[self._seen : self._seen + rows].tolist()
        version, absent = self._version(), self._layout.absent
        return [
            row
            for row in range(rows)
            if waiting[row] > 0 and (mine if row == me else seen[row] != version and not cells[absent + row])
        ]

    def _turns(self) -> list[Turns]:
        return [
            Turns(share, self._cells[base], self._numbers[base + 1])
            for share, base in zip(self.shares, self._ranks, strict=False)
        ]

    def _looked(self) -> bool:
        """Whether it had been offered something."""
        self._cells[self._seen + self._row] = self._version()
        self._cells[self._layout.absent + self._row] = 0
        if self._cells[self._pool + 1] != self._row + 1:
            return False
        self._cells[self._pool + 1] = 0
        return True

    def _version(self) -> int:
        return sum(self._cells[self._freed : self._freed + self._layout.rows + 1])

    def _wake(self, row: int) -> None:
        self._cells[self._nudged + row] = 1
        # Full after 2^64 - 1 of them unread: then it has been told.
        with suppress(BlockingIOError):
            eventfd_write(self._event_fds[row], 1)

    def _at(self, base: int, which: int) -> int:
        return self._layout.by_row(base, which) + self._row

    def _numbers_of(self, rank: int, which: int) -> memoryview[float]:
        first = self._layout.by_row(self._ranks[rank], which)
        return self._numbers[first : first + self._layout.rows]

    def _by_row(self, rank: int, which: int) -> memoryview[int]:
        first = self._layout.by_row(self._ranks[rank], which)
        return self._cells[first : first + self._layout.rows]


def _nothing() -> None:
    """Nobody looks yet."""
