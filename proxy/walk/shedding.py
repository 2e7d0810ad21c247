# SPDX-License-Identifier: Apache-2.0
"""Work in flight that ends when a higher class finds no place: of this gate, and for those of other workers."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict

from backends.ledger.line import Line
from proxy.walk.place import Place
from qos.admission import to_evict

__all__ = ["Shedding"]


class Shedding:
    """The places of one gate that sheddable requests have, oldest first. evicted: counts them by class."""

    def __init__(self, evicted: Counter[str], line: Line | None) -> None:
        self._evicted = evicted
        self._line = line
        self._places: OrderedDict[Place, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Shedding {len(self._places)} places>"

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: Place) -> None:
        """One more, if its request can be told to go."""
        if place.request.evict is not None:
            self._places[place] = None
            if self._line is not None:
                self._line.listen(asyncio.get_running_loop())
                self.tell()

    def discard(self, place: Place) -> None:
        """It is over."""
        if self._places.pop(place, self) is None:
            self.tell()

    def shed(self, waiting: list[int]) -> None:
        """End some for those of higher classes that found no place. waiting: how many of each rank, in all workers."""
        if self._line is None:
            self._shed(waiting, leaving_elsewhere=0)
            return
        with self._line as line:
            self._shed(waiting, leaving_elsewhere=line.leaving_elsewhere)
            self.tell()
            leaving = line.leaving_elsewhere + sum(place.evicted for place in self._places)
            if sum(waiting) > leaving:
                line.ask_to_shed(next(rank for rank, count in enumerate(waiting) if count))

    def tell(self) -> None:
        """What other workers may ask for; also after places have got other ranks."""
        if self._line is not None:
            may_go = (place.rank for place in self._places if not (place.protected or place.evicted))
            self._line.sheds(max(may_go, default=-1), sum(place.evicted for place in self._places))

    def _shed(self, waiting: list[int], *, leaving_elsewhere: int) -> None:
        held = [place for place in self._places if not place.protected]
        if not held:
            return
        # More than there are to go need not be counted.
        most = len(held) + leaving_elsewhere
        ranks = (rank for rank, count in enumerate(waiting) for _ in range(min(most, count)))
        for place in to_evict(ranks, held, leaving_elsewhere=leaving_elsewhere):
            place.evicted = True
            self._evicted[place.request.traffic_class.name] += 1
            if place.request.evict is not None:
                place.request.evict()
