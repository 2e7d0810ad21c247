# SPDX-License-Identifier: Apache-2.0
"""The traffic class: one promise, kept in every queue a request passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["ClassTable", "TrafficClass"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """One class as the admin defined it."""

    name: str
    rank: int
    """Place in the list of classes: 0 is served first."""
    dscp: int
    """0..63."""
    deadline_s: float
    """Until the whole reply, seconds."""
    queue_s: float
    """Longest wait in the gate, seconds."""


class ClassTable:
    """The classes in rank order, and the one that requests get when nothing else decides."""

    def __init__(self, classes: Sequence[TrafficClass], default: TrafficClass) -> None:
        self._classes = tuple(classes)
        self._by_name = {each.name: each for each in classes}
        self.default = default

    def __iter__(self) -> Iterator[TrafficClass]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __repr__(self) -> str:
        return f"<ClassTable {' > '.join(self._by_name)}, default {self.default.name}>"

    def get(self, name: str) -> TrafficClass | None:
        """The class of this name, or None."""
        return self._by_name.get(name)
