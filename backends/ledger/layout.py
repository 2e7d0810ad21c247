# SPDX-License-Identifier: Apache-2.0
"""Where everything stands in the segment: plain arithmetic over words of eight bytes.

    header | absent, one word a row | pools, one block each | columns (endpoints), one block each

A block holds a few words that all write, and arrays with one word a row, which only that row's worker writes, or who
clears it when that worker is dead. So a worker that is killed between two words leaves nothing that others count on.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HEADER", "MAGIC", "MOST_ROWS", "NOBODY", "RANKS", "Layout"]

MAGIC = 0x494C4C4544473031
"""`ILLEDG01`: the last two digits are the version of this arrangement."""
HEADER = 8
"""Words: the magic, rows, pools, columns; the rest is free."""
MOST_ROWS = 64
RANKS = 32
"""Most classes that several workers can share turns for."""
NOBODY = -1

_ONE_FOR_ALL = 4  # digest, offered to, offered at, (free)
_RANK_FOR_ALL = 3  # passed over, credit, level
_RANK_BY_ROW = 6  # waiting, bytes, clients, since, turn, held
_POOL_BY_ROW = 6  # users, nudged, seen, waiting in all, sheds, leaving
_COLUMN_FOR_ALL = 4  # digest, limit, leader, led at
_COLUMN_BY_ROW = 2  # users, held


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a segment for so many rows, pools and columns."""

    rows: int
    pools: int
    columns: int

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= MOST_ROWS and self.pools >= 1 and self.columns >= 1):
            raise ValueError(f"no ledger has {self.rows} rows (1 to {MOST_ROWS}), {self.pools} pools, {self.columns}")

    @property
    def bytes(self) -> int:
        """Of the whole segment; what nobody wrote costs no memory."""
        return 8 * self.column(self.columns)

    @property
    def pool_words(self) -> int:
        """Of one pool's block."""
        return _ONE_FOR_ALL + _POOL_BY_ROW * self.rows + self.rows + 1 + RANKS * self.rank_words

    @property
    def rank_words(self) -> int:
        """Of one rank in a pool's block."""
        return _RANK_FOR_ALL + _RANK_BY_ROW * self.rows

    @property
    def column_words(self) -> int:
        """Of one endpoint's block."""
        return _COLUMN_FOR_ALL + _COLUMN_BY_ROW * self.rows

    @property
    def absent(self) -> int:
        """Rows that did not look when they were offered a place."""
        return HEADER

    def pool(self, index: int) -> int:
        """The first word of a pool's block: digest, row offered to, when."""
        return HEADER + self.rows + index * self.pool_words

    def users(self, pool: int) -> int:
        """By row: how many gates hold this block. `pool` is the block's first word, here and below."""
        return pool + _ONE_FOR_ALL

    def nudged(self, pool: int) -> int:
        """By row: whether its gate is asked to look."""
        return self.users(pool) + self.rows

    def seen(self, pool: int) -> int:
        """By row: what `freed` was in all when it last looked in vain."""
        return self.users(pool) + 2 * self.rows

    def waiting_in_all(self, pool: int) -> int:
        """By row: requests of all ranks."""
        return self.users(pool) + 3 * self.rows

    def sheds(self, pool: int) -> int:
        """By row: one more than the lowest rank of which it could end work for a higher one; 0: none."""
        return self.users(pool) + 4 * self.rows

    def leaving(self, pool: int) -> int:
        """By row: places whose requests were told to go."""
        return self.users(pool) + 5 * self.rows

    def freed(self, pool: int) -> int:
        """By row, and one more for who clears rows: how often it gave something back."""
        return self.users(pool) + _POOL_BY_ROW * self.rows

    def rank(self, pool: int, rank: int) -> int:
        """The first word of a rank: passed over, credit, level; then by row waiting, bytes, clients, since, turn and
        held."""
        return self.freed(pool) + self.rows + 1 + rank * self.rank_words

    def by_row(self, rank: int, which: int) -> int:
        """One of a rank's arrays, 0 to 5 as `rank` names them."""
        return rank + _RANK_FOR_ALL + which * self.rows

    def column(self, index: int) -> int:
        """The first word of an endpoint's block: digest, limit, leader, led at."""
        return HEADER + self.rows + self.pools * self.pool_words + index * self.column_words

    def column_users(self, column: int) -> int:
        """By row: how many endpoints hold this block. `column` is the block's first word, here and below."""
        return column + _COLUMN_FOR_ALL

    def column_held(self, column: int) -> int:
        """By row: requests in flight."""
        return column + _COLUMN_FOR_ALL + self.rows
