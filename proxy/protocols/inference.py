# SPDX-License-Identifier: Apache-2.0
"""The server's half of the inference datagram protocol (docs/wire.md): reassembly, duplicates, kept replies.

Sans-IO: datagrams and `now` in, outcomes out. One instance serves one UDP listener, where cookies prove
addresses, or one QUIC connection, where the handshake has. Every buffer here has a bound, and what is over a
bound is dropped and named, never stored.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

from inferlane.reassembly import Reassembly, whole
from inferlane.wire import MAX_DATAGRAM, Header, Type, WireError, decode, encode, fragments
from proxy.protocols.cookies import CookieJar
from proxy.protocols.holdings import Holdings, Key
from proxy.timers import TimerHeap

__all__ = ["Cancelled", "Dropped", "InferenceServer", "Message", "Outcome", "Send"]

MAX_EXCHANGES = 65_536
"""Unanswered and kept ones together; the oldest kept reply makes room."""
MAX_UNANSWERED_A_PEER = 1_024
MAX_ARRIVING_A_HOST = 4 << 20
"""Of messages that are not whole, as their heads announce them: 218 of the longest. A host has many ports."""
STALE_S = 1.0
"""A message that is not whole after so long makes room for others: its client has repeated what was missing twice."""
KEPT_OVERHEAD = 512
"""Bytes that a kept reply takes beside its datagrams."""
SHORTEST_KEPT_S = 1.0
LONGEST_KEPT_S = 30.0


@dataclass(frozen=True, slots=True)
class Send:
    """Datagrams to send back to the peer."""

    datagrams: list[bytes]
    class_name: str | None = None
    """The class that the request was served in; None: it has none yet."""


@dataclass(frozen=True, slots=True)
class Message:
    """A whole request: answer it with `answer(key, ...)` or `refuse(key, ...)`."""

    key: Key
    header: Header
    body: bytes
    began: float
    """When its first fragment came: from then on its remaining time runs."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The peer does not want this answer any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing is done and nothing is stored; reason labels a counter."""

    reason: str


Outcome = Send | Message | Cancelled | Dropped


@dataclass(slots=True)
class _Exchange:
    """One request between its first fragment and the end of its kept reply."""

    began: float
    first: Header
    reassembly: Reassembly | None
    reply: list[bytes] = field(default_factory=list)
    class_name: str | None = None

    @property
    def working(self) -> bool:
        return self.reassembly is None and not self.reply


class InferenceServer:
    """Exchanges by (peer, request id).

    cookies: proves addresses; None inside QUIC. max_datagram: bytes that one datagram back may have. holdings: shared
    with others.
    """

    def __init__(
        self, *, cookies: CookieJar | None, max_datagram: int = MAX_DATAGRAM, holdings: Holdings | None = None
    ) -> None:
        holdings = holdings or Holdings()
        self._cookies = cookies
        self._max_datagram = max_datagram
        self._exchanges: dict[Key, _Exchange] = {}
        self._expiry: TimerHeap[Key] = TimerHeap()
        self._unanswered: dict[Hashable, int] = {}
        self._arriving, self._kept = holdings.arriving, holdings.kept
        self._arriving_from: dict[Hashable, int] = {}
        """Bytes by host."""

    def __repr__(self) -> str:
        return f"<InferenceServer {len(self._exchanges)} exchanges, arriving {self._arriving!r}, kept {self._kept!r}>"

    def receive(self, datagram: bytes, peer: Hashable, now: float) -> Outcome:
        """One datagram from a peer. Never raises."""
        self._expire(now)
        try:
            header, offset = decode(datagram)
        except WireError as error:
            return Dropped(f"malformed_{error.rule}")
        if header.type >= Type.REPLY:
            return Dropped("reply_to_server")
        if self._cookies is not None and not self._cookies.valid(header.cookie, peer, now):
            return self._challenge(header, datagram, peer, now)
        if header.type is Type.PING:
            return Send([encode(Header(type=Type.PONG, request_id=header.request_id))])
        key = (peer, header.request_id)
        exchange = self._exchanges.get(key)
        if header.type is Type.CANCEL:
            return self._cancel(key, exchange)
        if header.type is Type.RECEIVED:
            return self._resend_missing(exchange, header)
        if exchange is None:
            return self._begin(key, header, datagram[offset:], now)
        return self._continue(key, exchange, header, datagram[offset:])

    def answer(self, key: Key, header: Header, body: bytes) -> list[bytes]:
        """The datagrams of a reply, kept for repeats. Refused(USE_STREAM) when it needs too many."""
        return self._keep(key, header, fragments(header, body, max_datagram=self._max_datagram))

    def refuse(self, key: Key, header: Header, problem: bytes) -> list[bytes]:
        """The one datagram of a refusal, its document left out where it does not fit; kept like a reply."""
        fits = len(encode(header)) + len(problem) <= self._max_datagram
        return self._keep(key, header, fragments(header, problem if fits else b"", max_datagram=self._max_datagram))

    def forget(self, key: Key) -> None:
        """The request ended without an answer (its client left): a repeat starts anew."""
        exchange = self._exchanges.get(key)
        if exchange is not None and exchange.working:
            self.drop(key)

    def close(self) -> None:
        """Let go of everything: the peer is gone."""
        for key in list(self._exchanges):
            self.drop(key)

    def _challenge(self, header: Header, datagram: bytes, peer: Hashable, now: float) -> Outcome:
        assert self._cookies is not None
        if header.type is not Type.PING and (header.type is not Type.REQUEST or header.index != 0):
            return Dropped("no_cookie")
        challenge = encode(
            Header(type=Type.CHALLENGE, request_id=header.request_id, cookie=self._cookies.mint(peer, now))
        )
        return Send([challenge]) if len(challenge) <= len(datagram) else Dropped("no_cookie")

    def _begin(self, key: Key, header: Header, payload: bytes, now: float) -> Outcome:
        if len(self._exchanges) >= MAX_EXCHANGES and self._kept:
            self._kept.drop_oldest()
        if len(self._exchanges) >= MAX_EXCHANGES or self._unanswered.get(key[0], 0) >= MAX_UNANSWERED_A_PEER:
            return Dropped("too_many_exchanges")
        reassembly: Reassembly | None = None
        body: bytes | None
        try:
            # Before anything is booked: a length that its own fragment belies must not take others' room.
            if header.count == 1:
                body = whole(header, payload)
            else:
                reassembly = Reassembly(header)
                body = reassembly.add(header, payload)
        except WireError as error:
            return Dropped(f"malformed_{error.rule}")
        if body is None and not self._arrives(key, header.total_length, now):
            return Dropped("reassembly_full")
        # Until when the client may repeat it; one that names no deadline may repeat for long.
        remaining_s = header.remaining_us / 1e6 or LONGEST_KEPT_S
        kept_s = min(max(remaining_s, SHORTEST_KEPT_S), LONGEST_KEPT_S)
        exchange = _Exchange(now, header, reassembly if body is None else None)
        self._exchanges[key] = exchange
        self._expiry.set(key, now + kept_s)
        self._unanswered[key[0]] = self._unanswered.get(key[0], 0) + 1  # room may have been made with one of its own
        if body is not None:
            return Message(key, header, body, now)
        return self._advance(key, exchange, header, body, repeated=False)

    def _arrives(self, key: Key, size: int, now: float) -> bool:
        """Whether there is room for a message that comes in parts; if so, it is taken."""
        host = _host(key[0])
        from_host = self._arriving_from.get(host, 0) + size
        if from_host > MAX_ARRIVING_A_HOST or not self._arriving.make_room(size, now - STALE_S):
            return False
        # Again: room may have been made with something of this very host.
        self._arriving_from[host] = self._arriving_from.get(host, 0) + size
        self._arriving.put(self, key, size, now)
        return True

    def _arrived(self, key: Key) -> None:
        """It is whole, or given up."""
        host = _host(key[0])
        left = self._arriving_from[host] - self._arriving.take(self, key)
        if left:
            self._arriving_from[host] = left
        else:
            del self._arriving_from[host]

    def _continue(self, key: Key, exchange: _Exchange, header: Header, payload: bytes) -> Outcome:
        if exchange.reply:
            return Send(exchange.reply if header.index == 0 else [], exchange.class_name)
        if exchange.reassembly is None:
            return Send([_ack(header.request_id, (1 << exchange.first.count) - 1)])
        repeated = bool(exchange.reassembly.bitmap >> header.index & 1)
        try:
            body = exchange.reassembly.add(header, payload)
        except WireError as error:
            return Dropped(f"malformed_{error.rule}")  # one bad fragment must not cost the good ones
        if header.index == 0:
            exchange.first = header
        return self._advance(key, exchange, header, body, repeated=repeated)

    def _advance(self, key: Key, exchange: _Exchange, header: Header, body: bytes | None, *, repeated: bool) -> Outcome:
        """A fragment is in: the message if it is whole now, else an ack where the peer waits for one."""
        if body is not None:
            exchange.reassembly = None
            self._arrived(key)
            return Message(key, exchange.first, body, exchange.began)
        if exchange.reassembly is not None and (repeated or header.index == header.count - 1):
            return Send([_ack(header.request_id, exchange.reassembly.bitmap)])
        return Send([])

    def _cancel(self, key: Key, exchange: _Exchange | None) -> Outcome:
        if exchange is None:
            return Dropped("unknown_exchange")
        if exchange.working:
            return Cancelled(key)  # it is kept until its walk is over (`forget`), so that no repeat starts another
        self.drop(key)
        return Send([])

    def _resend_missing(self, exchange: _Exchange | None, header: Header) -> Outcome:
        if exchange is None or not exchange.reply:
            return Dropped("unknown_exchange")
        bitmap = header.bitmap or 0
        missing = [each for index, each in enumerate(exchange.reply) if not bitmap >> index & 1]
        return Send(missing, exchange.class_name)

    def _keep(self, key: Key, header: Header, datagrams: list[bytes]) -> list[bytes]:
        exchange = self._exchanges.get(key)
        if exchange is None:
            return datagrams  # expired or cancelled meanwhile; the peer may still be glad of it
        if exchange.reply:
            self._kept.take(self, key)
        else:
            self._left(key[0])
        exchange.reply, exchange.class_name = datagrams, header.class_name
        self._kept.put(self, key, sum(map(len, datagrams)) + KEPT_OVERHEAD, 0.0)
        self._kept.make_room(0, inf)
        return datagrams

    def _expire(self, now: float) -> None:
        for key in self._expiry.pop_due(now):
            exchange = self._exchanges.get(key)
            if exchange is None:
                continue
            if exchange.working:  # its walk ends by its own deadline; until then a repeat must not start another
                self._expiry.set(key, now + SHORTEST_KEPT_S)
            else:
                self.drop(key)

    def drop(self, key: Key) -> None:
        """Forget an exchange, whatever its state."""
        exchange = self._exchanges.pop(key)
        self._expiry.set(key, None)
        if exchange.reply:
            self._kept.take(self, key)
            return
        self._left(key[0])
        if exchange.reassembly is not None:
            self._arrived(key)

    def _left(self, peer: Hashable) -> None:
        """One unanswered exchange of this peer less."""
        left = self._unanswered[peer] - 1
        if left:
            self._unanswered[peer] = left
        else:
            del self._unanswered[peer]


def _host(peer: Hashable) -> Hashable:
    """Over UDP a peer is an address and a port."""
    return peer[0] if isinstance(peer, tuple) else peer


def _ack(request_id: int, bitmap: int) -> bytes:
    return encode(Header(type=Type.ACK, request_id=request_id, bitmap=bitmap))
