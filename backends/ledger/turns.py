# SPDX-License-Identifier: Apache-2.0
"""Which worker's turn it is: the rank by the rule that one gate has, and among those that wait in it the rows in turn.

The rank is chosen by qos/scheduler.py from what waits and what is held everywhere, so its floor and shares hold over
all workers as they do in one. Inside a rank rows are served as clients are inside one (start-time fair queueing): a
turn costs a row one part in as many as it has clients waiting, the least used is next, of equals the one whose eldest
waits longest. Plain first come, first served over rows would let one client's backlog in one worker pass before all
that came after it in the others, which one gate does not allow either.
"""

from __future__ import annotations

from collections.abc import Sequence

from qos.scheduler import Turns, next_rank

__all__ = ["next_row", "turn_of"]


def turn_of(
    turns: Sequence[Turns], rows: Sequence[Sequence[int]], held: Sequence[int], places: int
) -> tuple[int, Sequence[int]] | None:
    """The rank, and the rows of it that may be next; None: nobody waits who may be given a place.

    rows: by rank, those that wait and may be given one; held: by rank, of all workers.
    """
    waiting = [rank for rank, each in enumerate(rows) if each]
    if len(waiting) < 2:
        return (waiting[0], rows[waiting[0]]) if waiting else None
    rank = next_rank(turns, [bool(each) for each in rows], held, places)
    return None if rank is None else (rank, rows[rank])


def next_row(rows: Sequence[int], turn: Sequence[float], since: Sequence[float]) -> int:
    """Of those that wait in one rank; there is one at least. turn: what each has used, in turns; since: when its
    eldest came, monotonic seconds; both by row, of all rows."""
    if len(rows) == 1:
        return rows[0]
    return min(rows, key=lambda row: (turn[row], since[row], row))
