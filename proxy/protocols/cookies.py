# SPDX-License-Identifier: Apache-2.0
"""Address cookies: proof that a UDP client receives at the address it sends from, with no state kept for it.

The idea is DTLS's HelloVerifyRequest (RFC 6347 section 4.2.1). Whoever cannot show a cookie gets at most one
challenge, no longer than its own datagram, so nobody can be flooded through us by forging his address.
"""

from __future__ import annotations

import hmac
from collections.abc import Hashable

__all__ = ["COOKIE_BYTES", "EPOCH_S", "MOST_SEEN", "CookieJar"]

COOKIE_BYTES = 16
EPOCH_S = 60.0
"""A cookie is good for its epoch and the next: 60 to 120 s."""

MOST_SEEN = 4096
"""Peers whose cookie is not computed again. Only who has proved its address gets there."""


class CookieJar:
    """Mints and checks cookies. secret: 32 random bytes; workers and restarts that share it accept each other's."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[int, bytes] = {}
        self._seen: dict[Hashable, tuple[int, bytes]] = {}

    def mint(self, peer: Hashable, now: float) -> bytes:
        """The cookie for a peer's address now (monotonic seconds)."""
        return self._cookie(peer, int(now // EPOCH_S))

    def valid(self, cookie: bytes | None, peer: Hashable, now: float) -> bool:
        """Whether the peer was given this cookie in this epoch or the one before."""
        if cookie is None:
            return False
        epoch = int(now // EPOCH_S)
        seen = self._seen.get(peer)
        if seen is not None and seen[0] in (epoch, epoch - 1) and hmac.compare_digest(cookie, seen[1]):
            return True
        for each in (epoch, epoch - 1):
            expected = self._cookie(peer, each)
            if hmac.compare_digest(cookie, expected):
                if len(self._seen) >= MOST_SEEN:
                    self._seen.clear()
                self._seen[peer] = each, expected
                return True
        return False

    def _cookie(self, peer: Hashable, epoch: int) -> bytes:
        key = self._keys.get(epoch)
        if key is None:
            key = hmac.digest(self._secret, epoch.to_bytes(8, "big", signed=True), "sha256")
            self._keys = {each: self._keys[each] for each in self._keys if each >= epoch - 1}
            self._keys[epoch] = key
        return hmac.digest(key, repr(peer).encode(), "sha256")[:COOKIE_BYTES]
