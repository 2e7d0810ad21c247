# SPDX-License-Identifier: Apache-2.0
"""An adaptive limit that all workers keep to: one of them learns it from its own answers, the others follow.

Did each learn for itself, one would allow what another does not, and each one's trials (15 % less, in turn with its
level) would be the other's noise. The one that leads sees its part of the answers, which is a fair sample.
"""

from __future__ import annotations

from typing import Protocol

from backends.ledger.column import Column
from qos.limit import Limit

__all__ = ["Adopting", "SharedLimit"]


class Adopting(Limit, Protocol):
    """A limit that can go on from what somebody else found."""

    def adopt(self, limit: int, now: float) -> None:
        """From here."""
        ...


class SharedLimit:
    """own: what this worker learns while it leads."""

    __slots__ = ("_column", "_leading", "own")

    def __init__(self, own: Adopting, column: Column) -> None:
        self.own = own
        self._column = column
        self._leading = False

    def __repr__(self) -> str:
        return f"<SharedLimit {self.limit}, {'leading' if self._leading else 'following'}>"

    @property
    def limit(self) -> int:
        """The leader's; this worker's own before there is one."""
        return self._column.limit or self.own.limit

    def finished(self, latency_s: float, in_flight: int, now: float) -> None:
        """See Limit."""
        if self._lead(now):
            self.own.finished(latency_s, in_flight, now)
            self._column.publish(self.own.limit)

    def failed(self, now: float) -> None:
        """See Limit."""
        if self._lead(now):
            self.own.failed(now)
            self._column.publish(self.own.limit)

    def _lead(self, now: float) -> bool:
        leads = self._column.leads(now)
        if leads and not self._leading and self._column.limit:
            self.own.adopt(self._column.limit, now)
        self._leading = leads
        return leads
