# SPDX-License-Identifier: Apache-2.0
"""How many extra attempts may be made: a part of the requests, and a few at once."""

from __future__ import annotations

__all__ = ["Budget"]

# Counted in whole millionths of an attempt: ten tenths are one, which is not so with floats.
_ONE = 1_000_000


class Budget:
    """For retries, or for hedges.

    share: extra attempts as a part of the requests, 0 allows none at all; reserve: how many may be made at once, also
    before the first request. What is not spent is saved up to the reserve only, so over any stretch of n requests at
    most share * n + reserve are spent and a quiet hour pays for no storm (gRFC A6 and Finagle bound retries likewise).
    """

    __slots__ = ("_left", "_most", "_per_request")

    def __init__(self, share: float, reserve: int = 10) -> None:
        self._per_request = round(share * _ONE)
        self._most = max(1, reserve) * _ONE if self._per_request > 0 else 0
        self._left = self._most

    def __repr__(self) -> str:
        share = self._per_request / _ONE
        return f"<Budget {self._left / _ONE:.1f} of {self._most // _ONE} left, {share:.0%} of requests>"

    @property
    def allows(self) -> bool:
        """Whether `spend` would succeed now."""
        return self._left >= _ONE

    def earn(self) -> None:
        """A request was made, for the first time."""
        self._left = min(self._most, self._left + self._per_request)

    def spend(self) -> bool:
        """Pay for one extra attempt; False: there is nothing left, make none."""
        if self._left < _ONE:
            return False
        self._left -= _ONE
        return True
