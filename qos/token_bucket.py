# SPDX-License-Identifier: Apache-2.0
"""A token bucket: so many bytes a second, and a burst at once."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Full at first. rate: bytes a second. burst: bytes that may go at once; what is longer waits for a full bucket."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self._burst = burst
        self._tokens = burst
        self._counted: float | None = None

    def __repr__(self) -> str:
        return f"<TokenBucket {self._tokens:.0f} of {self._burst:.0f} bytes, {self.rate:.0f} B/s>"

    def wait_s(self, count: int, now: float) -> float:
        """Seconds until `count` bytes may go; 0: now."""
        self._fill(now)
        return max(0.0, (min(count, self._burst) - self._tokens) / self.rate)

    def take(self, count: int, now: float) -> None:
        """`count` bytes go now. More than there are leave a debt, for which the next ones wait."""
        self._fill(now)
        self._tokens -= count

    def _fill(self, now: float) -> None:
        if self._counted is not None:
            # A clock that stands or steps back, as one may in tests, fills nothing.
            self._tokens = min(self._burst, self._tokens + max(0.0, now - self._counted) * self.rate)
        self._counted = now
