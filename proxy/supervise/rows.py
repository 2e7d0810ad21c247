# SPDX-License-Identifier: Apache-2.0
"""The rows that one generation has in a shared ledger. Two generations share one, so that slots hold for both."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from backends.ledger.layout import MAGIC, MOST_ROWS
from backends.ledger.segment import Ledger, LedgerMismatchError
from proxy.supervise.places import free_range
from proxy.supervise.start import LedgerPlace

__all__ = ["HandedRows", "Rows"]

_EVENT = os.EFD_NONBLOCK | os.EFD_CLOEXEC


class HandedRows(msgspec.Struct, frozen=True, kw_only=True):
    """What another program in this process needs to go on with them."""

    fd: int
    event_fds: list[int]
    first: int
    count: int


class Rows:
    """Some of a ledger's. ledger: None where another version arranges it, so that nobody here can clear them."""

    def __init__(self, fd: int, event_fds: Sequence[int], rows: range, ledger: Ledger | None) -> None:
        self.fd = fd
        self.event_fds = list(event_fds)
        self.rows = rows
        self.ledger = ledger

    def __repr__(self) -> str:
        return f"<Rows {self.rows} of {len(self.event_fds)}>"

    @classmethod
    def create(cls, count: int, *, banks: int) -> Rows:
        """The first of a ledger that has room for so many generations."""
        ledger = Ledger.create(min(banks * count, MOST_ROWS))
        return cls(ledger.fd, ledger.event_fds, range(count), ledger)

    @classmethod
    def written_by_others(cls, count: int, rows: int, fd: int) -> Rows:
        """The first so many of a ledger that another version has arranged."""
        return cls(fd, [os.eventfd(0, _EVENT) for _ in range(rows)], range(count), None)

    def beside(self, count: int) -> Rows | None:
        """For another generation; None: there is no room for so many."""
        rows = free_range([self.rows], count)
        if self.ledger is None or rows.stop > self.ledger.rows:
            return None
        return Rows(self.fd, self.event_fds, rows, self.ledger)

    def at(self, index: int) -> LedgerPlace:
        """For the worker that has this place among its generation's."""
        return LedgerPlace(fd=self.fd, event_fds=self.event_fds, row=self.rows[index])

    def clear(self, index: int) -> None:
        """That worker is gone."""
        if self.ledger is not None:
            self.ledger.clear_row(self.rows[index])

    def close(self) -> None:
        """No generation has rows there any more."""
        if self.ledger is not None:
            self.ledger.close()
            return
        for fd in (self.fd, *self.event_fds):
            os.close(fd)

    def handed(self) -> HandedRows:
        """For another program in this process."""
        for fd in (self.fd, *self.event_fds):
            os.set_inheritable(fd, True)
        return HandedRows(fd=self.fd, event_fds=self.event_fds, first=self.rows.start, count=len(self.rows))

    @classmethod
    def adopt(cls, handed: HandedRows, others: Sequence[Rows]) -> Rows:
        """Go on with them. others: of other generations, which may be of the same ledger."""
        rows = range(handed.first, handed.first + handed.count)
        for each in others:
            if each.fd == handed.fd:
                return cls(each.fd, each.event_fds, rows, each.ledger)
        for fd in (handed.fd, *handed.event_fds):
            os.set_inheritable(fd, False)
        try:
            ledger: Ledger | None = Ledger.attach(handed.fd, row=None, event_fds=handed.event_fds)
        except LedgerMismatchError:
            ledger = None
        return cls(handed.fd, handed.event_fds, rows, ledger)


def version() -> int:
    """Of the arrangement that this program knows."""
    return MAGIC
