# SPDX-License-Identifier: Apache-2.0
"""One endpoint's count over all workers, and the limit that all of them keep to."""

from __future__ import annotations

from backends.ledger.layout import NOBODY
from backends.ledger.memory import Memory

__all__ = ["LEAD_S", "Column"]

LEAD_S = 2.0
"""Who learns the limit for all loses that to the next that has an answer, when it had none for so long."""


class Column:
    """As one worker sees it. Counts are exact under the pool's lock, and otherwise as fresh as memory is."""

    __slots__ = ("_cells", "_first", "_last", "_layout", "_mine", "_numbers", "_row", "word")

    def __init__(self, memory: Memory, word: int, row: int) -> None:
        layout = memory.layout
        self._cells = memory.cells
        self._numbers = memory.numbers
        self._layout = layout
        self._row = row
        self._first = layout.column_held(word)
        self._last = self._first + layout.rows
        self._mine = self._first + row
        self.word = word

    def __repr__(self) -> str:
        return f"<Column {self._cells[self._mine]} of {self.total()} in flight>"

    def total(self) -> int:
        """Requests that all workers have there."""
        return sum(self._cells[self._first : self._last])

    def take(self) -> None:
        """One more is this worker's."""
        self._cells[self._mine] += 1

    def leave(self) -> None:
        """One fewer is."""
        self._cells[self._mine] -= 1

    def part(self) -> None:
        """The endpoint is gone from this worker."""
        self._cells[self._layout.column_users(self.word) + self._row] -= 1

    @property
    def limit(self) -> int:
        """What its leader found; 0: nothing yet."""
        return int(self._cells[self.word + 1])

    def leads(self, now: float) -> bool:
        """Whether what this worker learns is everybody's limit; the first that asks, or that asks after a pause."""
        leader = self._cells[self.word + 2] - 1
        if leader != self._row:
            if leader != NOBODY and now - self._numbers[self.word + 3] < LEAD_S:
                return False
            self._cells[self.word + 2] = self._row + 1
        self._numbers[self.word + 3] = now
        return True

    def publish(self, limit: int) -> None:
        """The leader's."""
        self._cells[self.word + 1] = limit
