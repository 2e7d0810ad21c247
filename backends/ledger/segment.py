# SPDX-License-Identifier: Apache-2.0
"""The ledger itself: a memory segment made by the supervisor, mapped by each worker, and an event for each row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING

from backends.ledger.column import Column
from backends.ledger.layout import HEADER, MAGIC, RANKS, Layout
from backends.ledger.line import Line
from backends.ledger.memory import Memory

if TYPE_CHECKING:
    import asyncio

__all__ = ["Ledger", "LedgerFullError", "LedgerMismatchError"]

_DIRECTORY = 0
"""The lock's byte under which blocks are claimed."""


class LedgerMismatchError(Exception):
    """The segment was made by a version that arranges it otherwise."""


class LedgerFullError(Exception):
    """More pools or endpoints than it was made for."""


class Ledger:
    """What one process has of it. row: a worker's, which nobody else writes; None: the supervisor's, who only clears.

    The file descriptors are this object's from now on, and closed with it.
    """

    def __init__(self, fd: int, layout: Layout, *, row: int | None, event_fds: Sequence[int]) -> None:
        if len(event_fds) != layout.rows or (row is not None and not 0 <= row < layout.rows):
            raise ValueError(f"row {row} of {layout.rows}, {len(event_fds)} events")
        self.row = row
        self.event_fds = tuple(event_fds)
        self._layout = layout
        self._memory = Memory(fd, layout)
        self._cells = self._memory.cells
        self._lines: dict[str, Line] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Ledger row {self.row} of {self.rows}, {len(self._lines)} pools>"

    @classmethod
    def create(cls, rows: int, *, pools: int = 256, columns: int = 1024, fd: int | None = None) -> Ledger:
        """The supervisor's. rows: of all workers that may live at once, both generations of an upgrade. fd: of an empty
        file; default: a new one."""
        layout = Layout(rows, pools, columns)
        fd = os.memfd_create("inferlane-ledger", os.MFD_CLOEXEC) if fd is None else fd
        os.ftruncate(fd, layout.bytes)
        ledger = cls(fd, layout, row=None, event_fds=[os.eventfd(0, _EVENT) for _ in range(rows)])
        for at, word in enumerate((MAGIC, rows, pools, columns)):
            ledger._cells[at] = word
        return ledger

    @classmethod
    def attach(cls, fd: int, *, row: int | None, event_fds: Sequence[int]) -> Ledger:
        """A worker's, or the supervisor's after it replaced itself. Raises LedgerMismatchError."""
        head = memoryview(os.pread(fd, 8 * HEADER, 0).ljust(8 * HEADER, b"\0")).cast("q")
        if head[0] != MAGIC:
            raise LedgerMismatchError(f"the ledger begins with {head[0]:x}, not {MAGIC:x}")
        return cls(fd, Layout(head[1], head[2], head[3]), row=row, event_fds=event_fds)

    @property
    def fd(self) -> int:
        """What a worker inherits, together with `event_fds`."""
        return self._memory.fd

    @property
    def rows(self) -> int:
        """Of workers."""
        return self._layout.rows

    def line(self, pool: str) -> Line:
        """Where this pool's requests wait; the same whenever it is asked for. Raises LedgerFullError."""
        row = self._own_row()
        if pool in self._lines:
            return self._lines[pool]
        layout, blocks = self._layout, [self._layout.pool(index) for index in range(self._layout.pools)]
        index = self._claim(pool, blocks, layout.users(0), layout.pool_words)
        line = self._lines[pool] = Line(
            self._memory, index=index, row=row, event_fds=self.event_fds, listen=self.listen
        )
        return line

    def column(self, pool: str, endpoint: str) -> Column:
        """What this endpoint has in flight. Raises LedgerFullError."""
        row = self._own_row()
        layout, blocks = self._layout, range(self._layout.column(0), self._layout.column(self._layout.columns))
        starts = blocks[:: layout.column_words]
        index = self._claim(f"{pool}\0{endpoint}", starts, layout.column_users(0), layout.column_words)
        return Column(self._memory, starts[index], row)

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on whoever is offered a place looks; once is enough."""
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self.event_fds[self._own_row()], self._woken)

    def clear_row(self, row: int) -> None:
        """Its worker is dead: what it held is free, and who waits looks. Takes no lock, which a worker that hangs might
        hold: it only writes words that nobody else writes any more, or writes to."""
        layout, cells = self._layout, self._cells
        cells[layout.absent + row] = 0
        for index in range(layout.columns):
            word = layout.column(index)
            if cells[word]:
                cells[layout.column_users(word) + row] = cells[layout.column_held(word) + row] = 0
                if cells[word + 2] == row + 1:
                    cells[word + 2] = 0
        for index in range(layout.pools):
            word = layout.pool(index)
            if cells[word]:
                self._clear_pool(word, row)
        for event in self.event_fds:
            with suppress(BlockingIOError):
                os.eventfd_write(event, 1)

    def close(self) -> None:
        """Once, when nothing of it is used any more."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self.event_fds[self._own_row()])
        self._memory.close()
        for fd in self.event_fds:
            os.close(fd)

    def _clear_pool(self, word: int, row: int) -> None:
        layout, cells = self._layout, self._cells
        for rank in range(RANKS):
            first = layout.rank(word, rank)
            for which in range(6):
                cells[layout.by_row(first, which) + row] = 0  # the same bits as 0.0
        for array in (layout.users, layout.seen, layout.waiting_in_all, layout.sheds, layout.leaving):
            cells[array(word) + row] = 0
        if cells[word + 1] == row + 1:
            cells[word + 1] = 0
        cells[layout.freed(word) + layout.rows] += 1
        for other in range(layout.rows):
            cells[layout.nudged(word) + other] = int(other != row)

    def _claim(self, name: str, blocks: Sequence[int], users: int, words: int) -> int:
        """Which block has this name. A block that no row uses any more is given to another name."""
        cells, rows = self._cells, self._layout.rows
        digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True) or 1
        with self._memory.locked(_DIRECTORY):
            unused: int | None = None
            for step in range(len(blocks)):
                index = (digest + step) % len(blocks)
                word = blocks[index]
                if cells[word] == digest:
                    break
                if unused is None and not any(cells[word + users : word + users + rows]):
                    unused = index
                if cells[word] == 0:
                    break
            if cells[word] != digest:
                if unused is None:
                    raise LedgerFullError(f"no room for {name!r} among {len(blocks)}")
                index, word = unused, blocks[unused]
                for at in range(word + 1, word + words):
                    cells[at] = 0
                cells[word] = digest  # last: a block without a name would end others' search
            cells[word + users + self._own_row()] += 1
        return index

    def _own_row(self) -> int:
        if self.row is None:
            raise ValueError("a ledger without a row counts nothing")
        return self.row

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.event_fds[self._own_row()])
        for line in list(self._lines.values()):
            line.nudge()


_EVENT = os.EFD_NONBLOCK | os.EFD_CLOEXEC
