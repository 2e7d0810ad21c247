# SPDX-License-Identifier: Apache-2.0
"""Datagrams that no connection expects: who may begin one, and what the others are told, all without keeping state.

Everything said here may go to a forged address, so all of it is shorter than its cause, except a Retry, which is as
good as, and all of it has a rate.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from proxy.listeners.udp import Address
from proxy.quic.configuration import QuicConfiguration
from proxy.quic.connection_ids import Origin
from proxy.quic.first_look import FirstLook, Initial, Look, first_look, version_negotiation
from proxy.quic.identity import Identity, stateless_reset
from proxy.quic.retry import RETRY_CID_LENGTH, QuicErrorCode, Retries, Verdict, refusal, retry_packet
from qos.token_bucket import TokenBucket

__all__ = ["Newcomer", "Strangers"]

RETRY_FROM = 256
"""Handshakes going on, from which a newcomer has to prove its address first (HAProxy: 100). It costs a round trip, and
spares us a handshake and its memory for everybody who forges addresses."""
MOST_CONNECTIONS = 16384
"""Of one socket: at 100 KiB each, 1.6 GiB."""
RESETS_S, RETRIES_S, REFUSALS_S = 100, 5000, 1000
"""A second, and as many at once. A reset is worth one client's idle timeout; Retries are to outpace a flood."""
_RESET_RANDOM = 32


class Newcomer(NamedTuple):
    """Who may begin a connection. original_cid: that of its first packet, before our Retry if there was one."""

    cid: bytes
    original_cid: bytes
    retry_cid: bytes | None


class Crowd(NamedTuple):
    """How full the listener is."""

    handshakes: int
    connections: int
    draining: bool


class Strangers:
    """Of one listener. say: sends a datagram to an address. siblings: see QuicListener."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        identity: Identity,
        retries: Retries,
        counts: Counter[str],
        say: Callable[[bytes, Address], None],
    ) -> None:
        self.siblings: frozenset[int] = frozenset()
        self._versions = configuration.supported_versions
        self._identity = identity
        self._retries = retries
        self._counts = counts
        self._say = say
        self._buckets = {
            "stateless_resets": TokenBucket(RESETS_S, RESETS_S),
            "retries": TokenBucket(RETRIES_S, RETRIES_S),
            "refusals": TokenBucket(REFUSALS_S, REFUSALS_S),
        }

    def __repr__(self) -> str:
        return f"<Strangers beside {sorted(self.siblings)}>"

    def meet(self, datagram: bytes, address: Address, now: float, crowd: Crowd) -> Newcomer | None:
        """Who may begin a connection with this datagram; None: nobody, and what had to be said is said."""
        look = first_look(datagram, self._versions)
        origin = self._identity.ids.read(look.destination)
        if origin is not None and origin.place in self.siblings:
            # A train of datagrams from one address is steered by its first. A reset would end a connection that lives.
            self._counts["misdirected"] += 1
        elif look.initial is not None:
            return self._initial(look.initial, address, now, crowd)
        elif look.kind is FirstLook.UNKNOWN_VERSION:
            self._counts["version_negotiations"] += 1
            self._say(version_negotiation(datagram, self._versions), address)
        else:
            self._stray(datagram, look, origin, address, now)
        return None

    def _stray(self, datagram: bytes, look: Look, origin: Origin | None, address: Address, now: float) -> None:
        """A reset answers ids of ours alone: to who never was our client it would say nothing, and because a reset does
        not look like an id of ours, two gateways that answer each other's soon stop."""
        if look.kind is FirstLook.SHORT and origin is not None:
            reset = stateless_reset(self._identity.reset_key, datagram, os.urandom(_RESET_RANDOM))
            if reset is not None and self._may("stateless_resets", now):
                self._counts["stateless_resets"] += 1
                self._say(reset, address)
                return
        self._counts["stray"] += 1

    def _initial(self, initial: Initial, address: Address, now: float, crowd: Crowd) -> Newcomer | None:
        if crowd.draining:
            self._counts["draining"] += 1
            return None
        proof = self._retries.look(initial.token, address[:2], initial.destination_cid, now)
        if proof.verdict is Verdict.INVALID:
            self._refuse(initial, QuicErrorCode.INVALID_TOKEN, "invalid_token", address, now)
            return None
        if crowd.connections >= MOST_CONNECTIONS:
            self._refuse(initial, QuicErrorCode.CONNECTION_REFUSED, "too_many_connections", address, now)
            return None
        if proof.verdict is Verdict.VALID:
            return Newcomer(initial.destination_cid, proof.original_destination_cid, initial.destination_cid)
        if crowd.handshakes < RETRY_FROM:
            return Newcomer(initial.destination_cid, initial.destination_cid, None)
        if self._may("retries", now):
            self._counts["retries"] += 1
            retry_cid = os.urandom(RETRY_CID_LENGTH)
            token = self._retries.mint(address[:2], initial.destination_cid, retry_cid, now)
            self._say(retry_packet(initial, retry_cid, token), address)
        else:
            self._counts["too_many_handshakes"] += 1
        return None

    def _refuse(self, initial: Initial, error: QuicErrorCode, reason: str, address: Address, now: float) -> None:
        """Under the bucket's rate the client hears why; above it, it hears nothing."""
        self._counts[reason] += 1
        if self._may("refusals", now):
            self._say(refusal(initial, error), address)

    def _may(self, what: str, now: float) -> bool:
        bucket = self._buckets[what]
        if bucket.wait_s(1, now) > 0:
            return False
        bucket.take(1, now)
        return True
