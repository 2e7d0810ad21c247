# SPDX-License-Identifier: Apache-2.0
"""Notices a peer that no longer answers: a gateway that was restarted forgets its connections without a word. Pure."""

from __future__ import annotations

__all__ = ["CHECK_S", "Silence"]

LONGEST_S = 3.0
"""A living peer acknowledges within one round trip; three seconds outlast any retransmission on a real path."""
QUIET_S = 15.0
"""RFC 8085 section 3.5: keep-alives no more often than this."""
CHECK_S = 5.0


class Silence:
    """Since when a peer owes us a packet."""

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._asked_at: float | None = None

    def __repr__(self) -> str:
        return f"<Silence heard {self._heard_at:.3f}, asked {self._asked_at}>"

    def asked(self, now: float) -> None:
        """Something was sent that must be acknowledged."""
        if self._asked_at is None:
            self._asked_at = now

    def heard(self, now: float) -> None:
        """Something came."""
        self._heard_at = now
        self._asked_at = None

    def dead(self, now: float) -> bool:
        """Whether the peer has been asked and kept silent for too long."""
        return self._asked_at is not None and now - self._asked_at >= LONGEST_S

    def quiet(self, now: float) -> bool:
        """Whether it is time to ask for a sign of life while a request is in flight."""
        return self._asked_at is None and now - self._heard_at >= QUIET_S
