# SPDX-License-Identifier: Apache-2.0
"""Address cookies: proof that a UDP client receives at the address it sends from, with no state kept for it.

The idea is DTLS's HelloVerifyRequest (RFC 6347 section 4.2.1). Whoever cannot show a cookie gets at most one
challenge, no longer than its own datagram, so nobody can be flooded through us by forging his address.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Hashable

__all__ = ["COOKIE_BYTES", "EPOCH_S", "CookieJar"]

COOKIE_BYTES = 16
EPOCH_S = 60.0
"""A cookie is good for its epoch and the next: 60 to 120 s."""


class CookieJar:
    """Mints and checks cookies. secret: 32 random bytes; workers and restarts that share it accept each other's."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[int, bytes] = {}

    def mint(self, peer: Hashable, now: float) -> bytes:
        """The cookie for a peer's address now (monotonic seconds)."""
        return self._cookie(peer, int(now // EPOCH_S))

    def valid(self, cookie: bytes | None, peer: Hashable, now: float) -> bool:
        """Whether the peer was given this cookie in this epoch or the one before."""
        if cookie is None:
            return False
        epoch = int(now // EPOCH_S)
        return any(hmac.compare_digest(cookie, self._cookie(peer, each)) for each in (epoch, epoch - 1))

    def _cookie(self, peer: Hashable, epoch: int) -> bytes:
        key = self._keys.get(epoch)
        if key is None:
            key = hmac.digest(self._secret, epoch.to_bytes(8, "big", signed=True), "sha256")
            self._keys = {each: self._keys[each] for each in self._keys if each >= epoch - 1}
            self._keys[epoch] = key
        return hmac.new(key, repr(peer).encode(), hashlib.sha256).digest()[:COOKIE_BYTES]
